"""Components that don't fit together, each with its exact message: in the model, at the hand-off, with the data."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.model_folder import save_model
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.components.weights import save_weights
from lightning_s2s.data.dataset import SpeechDialogueDataset
from lightning_s2s.data.requirements import DataRequirements
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.stages import SpeechGenerationPretraining
from parts.small_sizes import QWEN, WHISPER


@pytest.fixture
def parts(tokenizer_folder):
    """Builds new small components that fit; `width` is the LLM's, `levels` make 12 units."""

    def build(width: int = 16, levels: tuple[int, ...] = (4, 3), interleave: str = "2:3", **decoder) -> dict:
        return {
            "encoder": MelEncoder(width=16, num_layers=1, num_heads=2),
            "adapter": ConvAdapter(inner_width=8),
            "llm": CausalLanguageModel(config=QWEN | {"hidden_size": width}, tokenizer=str(tokenizer_folder)),
            "speech_decoder": InterleavedSpeechDecoder(interleave, QWEN, **decoder),
            "vocoder": PocketVocoder(levels=levels, encoder_width=8, decoder_width=8),
        }

    return build


def refusal(build) -> str:
    with pytest.raises(ValueError) as error:
        build()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the model ------------------------------------------------------------------------------------------------------


def test_parts_without_their_companion(parts):
    found = parts()
    together = "speech_decoder and vocoder go together"
    for slot, message in (
        ("encoder", "encoder and adapter go together: give both or neither"),
        ("adapter", "encoder and adapter go together: give both or neither"),
        ("speech_decoder", f"{together}: a vocoder alone has no units to synthesize"),
        ("vocoder", f"{together}, unless num_units of the speech_decoder is given"),
    ):
        assert refusal(lambda slot=slot: SpeechToSpeechModel(**found | {slot: None})) == message


def test_more_units_than_the_vocoder_knows(parts):
    assert refusal(lambda: SpeechToSpeechModel(**parts(num_units=13))) == (
        "speech_decoder InterleavedSpeechDecoder speaks 13 units, vocoder PocketVocoder knows 12"
    )
    assert SpeechToSpeechModel(**parts(num_units=11)).num_units == 11


def test_several_codebooks_side_by_side(parts):
    found = parts()
    found["vocoder"].num_codebooks = 8
    assert refusal(lambda: SpeechToSpeechModel(**found)) == (
        "speech_decoder InterleavedSpeechDecoder speaks one codebook, vocoder PocketVocoder has 8"
    )


def test_a_decoder_for_another_number_of_codebooks_in_a_frame(parts):
    found = parts()
    found["speech_decoder"].codebooks_per_frame = 8
    assert refusal(lambda: SpeechToSpeechModel(**found)) == (
        "speech_decoder InterleavedSpeechDecoder speaks 8 codebooks per frame, vocoder PocketVocoder has 1"
    )
    found["vocoder"].codebooks_per_frame = 8
    assert SpeechToSpeechModel(**found).num_units == 12


def test_an_interleave_that_speaks_far_ahead_of_its_text(parts):
    assert refusal(lambda: SpeechToSpeechModel(**parts(interleave="2:101"))) == (
        "speech_decoder InterleavedSpeechDecoder with interleave 2:101 gives 2.02 s of speech for each text token at "
        "the 25 units per second of vocoder PocketVocoder; at most 2 s make sense"
    )
    SpeechToSpeechModel(**parts(interleave="2:100"))


@pytest.mark.parametrize(
    ("slot", "attribute", "value", "message"),
    [
        ("encoder", "width", None, "encoder MelEncoder: width must be a number above 0; got None"),
        ("encoder", "frame_rate_hz", 0.0, "encoder MelEncoder: frame_rate_hz must be a number above 0; got 0.0"),
        ("adapter", "downsampling", "4", "adapter ConvAdapter: downsampling must be a number above 0; got '4'"),
        ("vocoder", "num_units", -1, "vocoder PocketVocoder: num_units must be a number above 0; got -1"),
    ],
)
def test_a_component_that_does_not_declare_its_numbers(parts, slot, attribute, value, message):
    found = parts()
    setattr(found[slot], attribute, value)
    assert refusal(lambda: SpeechToSpeechModel(**found)) == message


def test_a_tokenizer_without_the_special_tokens(parts, make_byte_tokenizer):
    from lightning_s2s.data.chat import ChatTokenizer

    found = parts()
    found["llm"].tokenizer = ChatTokenizer(make_byte_tokenizer(["<|im_start|>", "<|im_end|>", "<|im_audio_start|>"]))
    assert refusal(lambda: SpeechToSpeechModel(**found)) == (
        "llm CausalLanguageModel: its tokenizer lacks <|im_audio_end|>, <|im_tts_start|>, <|im_tts_end|>, which mark "
        "speech; add them with ensure_special_tokens() and let its embeddings grow"
    )


def test_more_tokens_than_embeddings(parts):
    found = parts()
    found["llm"].vocabulary = 262
    assert refusal(lambda: SpeechToSpeechModel(**found)) == (
        "llm CausalLanguageModel: its tokenizer has 263 tokens, its vocabulary 262"
    )


def test_a_speech_decoder_that_was_trained_for_another_llm_or_vocoder(parts, tmp_path):
    save_weights(SpeechToSpeechModel(**parts()).speech_decoder, tmp_path)
    SpeechToSpeechModel(**parts(checkpoint=str(tmp_path), interleave="1:2"))
    assert refusal(lambda: SpeechToSpeechModel(**parts(width=24, checkpoint=str(tmp_path)))) == (
        "InterleavedSpeechDecoder can't be built for llm CausalLanguageModel (width 24, 263 tokens), units 12: "
        f"{tmp_path}/model.safetensors: llm_projection.weight has shape (16, 16), InterleavedSpeechDecoder needs "
        "(16, 24)"
    )
    assert refusal(lambda: SpeechToSpeechModel(**parts(levels=(4, 4), checkpoint=str(tmp_path)))) == (
        "InterleavedSpeechDecoder can't be built for llm CausalLanguageModel (width 16, 263 tokens), units 16: "
        f"{tmp_path}/model.safetensors: lm.lm_head.weight has shape (13, 16), InterleavedSpeechDecoder needs (17, 16)"
    )


def test_an_adapter_that_can_not_be_built_between_its_neighbours(parts, monkeypatch):
    def connect(self, input_width, output_width, frame_rate_hz=None):
        raise ValueError("output width must be divisible by 5")

    monkeypatch.setattr(ConvAdapter, "connect", connect)
    assert refusal(lambda: SpeechToSpeechModel(**parts())) == (
        "ConvAdapter can't be built for encoder MelEncoder (width 16), llm CausalLanguageModel (width 16): output "
        "width must be divisible by 5"
    )


def test_another_voice_must_speak_the_same_units(parts):
    model = SpeechToSpeechModel(**parts())
    other = PocketVocoder(levels=(5, 4), encoder_width=8, decoder_width=8)
    model.attach_vocoder(other)
    assert model.vocoder is other and model.num_units == 12
    slower = PocketVocoder(levels=(5, 4), encoder_width=8, decoder_width=8)
    slower.samples_per_unit = 1280
    assert refusal(lambda: model.attach_vocoder(slower)) == (
        "the model speaks the units of vocoder PocketVocoder, 25 units per second; vocoder PocketVocoder has 12.5"
    )
    slower.samples_per_unit, slower.codebooks_per_frame = 640, 2
    assert refusal(lambda: model.attach_vocoder(slower)) == (
        "the model speaks the units of vocoder PocketVocoder, 1 codebooks per frame; vocoder PocketVocoder has 2"
    )
    assert model.vocoder is other


# --- from one stage to the next -------------------------------------------------------------------------------------


def test_a_hand_over_from_other_parts_names_the_cause(parts, tmp_path):
    save_model(SpeechToSpeechModel(**parts()), tmp_path)
    where = f"init_from: {tmp_path}/model.safetensors"
    whisper = parts() | {"encoder": WhisperEncoder(None, WHISPER)}
    assert refusal(lambda: load_handoff(SpeechToSpeechModel(**whisper), tmp_path)) == (
        f"{where}: its encoder is mel, the model's is whisper"
    )
    # The adapter and the speech decoder differ too, because of the LLM.
    assert refusal(lambda: load_handoff(SpeechToSpeechModel(**parts(width=24)), tmp_path)) == (
        f"{where}: llm: model.lm_head.weight has shape (263, 16), CausalLanguageModel needs (263, 24)"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    del config["encoder"]
    (tmp_path / "config.json").write_text(json.dumps(config))  # it doesn't describe the encoder: the shapes do
    assert "encoder: does not fit WhisperEncoder: missing ['encoder.conv1.bias'" in refusal(
        lambda: load_handoff(SpeechToSpeechModel(**whisper), tmp_path)
    )


# --- the data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spoken_row(write_manifest, tmp_path):
    """A manifest with one row: 25 units for a second of audio, by default with a recording of the reply."""

    def write(num_units: int = 25, sec: float | None = None, recorded: bool = True, text: str = "A"):
        soundfile.write(tmp_path / "reply.wav", np.zeros(16_000, np.float32), 16_000)
        reply = {"text": text, "speech_units": list(range(num_units))} | ({"audio": "reply.wav"} if recorded else {})
        reply |= {"audio_sec": sec} if sec else {}
        return write_manifest([{
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [reply]}],
        }])  # fmt: skip

    return write


@pytest.fixture
def read(chat_tokenizer):
    def read(manifest, **requirements) -> SpeechDialogueDataset:
        return SpeechDialogueDataset(
            [manifest], DataRequirements(chat_tokenizer, **{"unit_rate_hz": 25.0, "num_units": 1000, **requirements})
        )

    return read


def test_units_of_another_codebook(spoken_row, read):
    path = spoken_row()
    assert refusal(lambda: read(path, num_units=20)) == (
        f"{path}:1: speech_units: got the unit 20, outside the codebook; allowed: 0..19"
    )


@pytest.mark.parametrize(("num_units", "found"), [(12, 12.0), (13, 13.0), (50, 50.0)])
def test_units_of_another_rate_than_the_recording_tells(spoken_row, read, num_units, found):
    path = spoken_row(num_units)
    assert refusal(lambda: read(path)) == (
        f"{path}:1: speech_units: {num_units} for 1.00 s of audio are {found:.1f} a second, the vocoder has 25; "
        "were they made by another one?"
    )
    assert len(read(path, unit_rate_hz=None)) == len(read(path, unit_rate_hz=found)) == 1


def test_units_of_another_rate_than_the_row_states(spoken_row, read):
    assert "25 for 2.00 s of audio are 12.5 a second" in refusal(lambda: read(spoken_row(25, sec=2.0, recorded=False)))
    assert len(read(spoken_row(25, sec=1.2))) == len(read(spoken_row(25, sec=0.2))) == 1  # silence cut off; too short


def test_units_that_make_no_whole_frames(spoken_row, read):
    path = spoken_row(recorded=False)
    assert refusal(lambda: read(path, codebooks_per_frame=8)) == (
        f"{path}:1: speech_units: got 25; the vocoder makes a frame of 8 of them"
    )
    assert len(read(path, codebooks_per_frame=5)) == 1


def test_texts_that_the_template_can_not_write(spoken_row, read):
    path = spoken_row(text="A<|im_end|>")
    assert refusal(lambda: read(path)) == (
        f"{path}:1: text: contains the special token '<|im_end|>', which only the chat template may write"
    )


def test_stage_2_needs_units(parts, tiny_corpus, write_manifest, caplog):
    found = parts()
    requirements = SpeechGenerationPretraining(
        found["llm"], speech_decoder=found["speech_decoder"], vocoder=found["vocoder"], freeze=["llm.*"]
    ).data_requirements()
    assert requirements.needs_units and (requirements.codebooks_per_frame, requirements.num_units) == (1, 12)
    mute = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]}
    spoken = {"messages": [mute["messages"][0], {"role": "assistant", "content": [{"text": "A", "speech_units": [1]}]}]}
    path = write_manifest([mute, spoken, mute])
    dataset = SpeechDialogueDataset([path], requirements)
    assert len(dataset) == 1 and dataset.problems == {"no speech units": 2}
    path = write_manifest([mute])
    assert refusal(lambda: SpeechDialogueDataset([path], requirements)) == (
        f"{path}: nothing is left to use of 1 rows (1 x no speech units)"
    )
    assert re.search(r"2 of 3 rows left out: 2 x no speech units", caplog.text)


def test_an_encoder_at_another_rate_is_no_mistake(chat_tokenizer, write_manifest, tmp_path):
    """Audio is resampled from any rate."""
    soundfile.write(tmp_path / "q.wav", np.zeros(8_000, np.float32), 8_000)
    row = {"messages": [{"role": "user", "content": [{"audio": "q.wav"}]}, {"role": "assistant", "content": "A"}]}
    for rate in (16_000, 24_000):
        dataset = SpeechDialogueDataset([write_manifest([row])], DataRequirements(chat_tokenizer, sample_rate=rate))
        assert torch.tensor(dataset[0].waveforms[0]).shape == (rate,)

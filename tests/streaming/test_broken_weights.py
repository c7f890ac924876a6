"""Non-finite weights, replies without words, and replies that end in the middle of a character."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components import pretrained
from lightning_s2s.generation.sampling import CheckedSampler, Sampler
from lightning_s2s.streaming.detokenizer import MAX_PENDING_TOKENS, Detokenizer
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import AudioChunk, Done, TextDelta
from lightning_s2s.streaming.session import respond, stream_reply
from lightning_s2s.support.checks import all_finite
from parts.small_decoders import DECODERS, Endless, whole_model
from parts.small_models import build
from parts.sounds import sweep

QUESTION = sweep(0.6)
NAMES = {
    "encoder": "encoder MelEncoder", "adapter": "adapter ConvAdapter", "llm": "llm CausalLanguageModel",
    "speech_decoder": "speech_decoder InterleavedSpeechDecoder", "vocoder": "vocoder PocketVocoder",
}  # fmt: skip


@pytest.fixture
def model(tokenizer_folder):
    return build(tokenizer_folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("slot", NAMES)
@pytest.mark.parametrize("overlap", [False, True])
def test_broken_weights_end_the_session_by_the_component_s_name(model, slot, value, overlap):
    with torch.no_grad():
        for parameter in getattr(model, slot).parameters():
            parameter.fill_(value)
    engine = StreamingEngine(model, 1, overlap=overlap)
    for greedy in (True, False):
        with pytest.raises(
            ValueError, match=f"^{NAMES[slot]}: .* came out as NaN or infinite: its weights hold"
        ) as error:
            respond(model, QUESTION, 16_000, max_text_tokens=9, greedy=greedy, engine=engine)
        assert "\n" not in str(error.value)
    assert not engine.llm_cache.taken and not engine.speech_cache.taken


@pytest.mark.parametrize("kind", DECODERS)
def test_every_speech_decoder_is_looked_at(kind, tokenizer_folder):
    model = whole_model(tokenizer_folder, kind)
    with torch.no_grad():
        model.speech_decoder.llm_projection.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=f"^speech_decoder {type(model.speech_decoder).__name__}: logits came out"):
        respond(model, QUESTION, 16_000, max_text_tokens=9)


@pytest.mark.parametrize("values", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]], ids=str)
def test_logits_that_nothing_can_be_drawn_from(values):
    for sampler in (Sampler(temperature=0.0), Sampler()):
        with pytest.raises(ValueError, match="^llm X: logits came out as NaN or infinite"):
            CheckedSampler(sampler, "llm X")(torch.tensor(values))
    assert CheckedSampler(Sampler(), "llm X")(torch.tensor([-math.inf, 0.0])) == 1  # ruled out, as by a mask


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_folder_with_broken_weights_is_refused(model, tmp_path, value):
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["llm.model.lm_head.weight"][5, 3] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model.safetensors: llm.model.lm_head.weight holds NaN or infinite values"):
        load_model(tmp_path / "model")


def test_a_checkpoint_of_transformers_with_broken_weights_is_refused(model, tmp_path):
    with torch.no_grad():
        model.llm.model.lm_head.weight[0, 0] = math.nan
    model.llm.model.save_pretrained(tmp_path / "llm")
    with pytest.raises(ValueError, match="llm: lm_head.weight holds NaN or infinite values"):
        pretrained.load_model("AutoModelForCausalLM", str(tmp_path / "llm"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_all_finite(dtype):
    values = torch.ones(3, 5).to(dtype)
    assert all_finite(values) and all_finite(values[:0]) and all_finite(torch.arange(3))
    for broken in (math.nan, math.inf, -math.inf) if dtype.itemsize > 1 else (math.nan,):
        values[1, 2] = broken
        assert not all_finite(values)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(
    "said",
    [[257], [261, 257], [32, 10, 257], [261, 261, 261, 261, 261, 257]],
    ids=["end", "closed", "space", "specials"],
)
def test_a_reply_without_a_word_makes_no_sound(kind, said, tokenizer_folder):
    model = whole_model(tokenizer_folder, kind)
    tokens = iter(said)
    events = list(stream_reply(model, QUESTION, 16_000, greedy=False, text_sampler=lambda logits: next(tokens)))
    assert {type(event) for event in events} == {TextDelta, Done}
    reply = events[-1].reply
    assert (reply.text, reply.unit_ids, reply.waveform, reply.audio_sec) == ("", [], None, 0.0)
    assert reply.text_ids == said and reply.ended_by == "end"


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("num_spaces", [1, 2, 3, 4, 5])
def test_what_comes_before_the_first_word_is_a_condition_all_the_same(kind, num_spaces, tokenizer_folder):
    """Speech begins with the first word, from the same conditions as if all had arrived at once."""
    model = whole_model(tokenizer_folder, kind)
    said = [32] * num_spaces + [72, 105, 261, 257]
    states = []
    project = model.speech_decoder.project

    def spy(hidden_states, tokens):
        states.append((hidden_states, tokens))
        return project(hidden_states, tokens)

    model.speech_decoder.project = spy
    tokens = iter(said)
    samplers = {"text_sampler": lambda logits: next(tokens), "unit_sampler": Endless()}
    reply = respond(model, QUESTION, 16_000, greedy=False, **samplers)
    hidden, ids = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
    assert ids[0].tolist() == said
    decoder = model.speech_decoder
    with torch.inference_mode():
        state = decoder.start_stream(torch.zeros(1, 512), Endless())
        expected = list(itertools.chain(*decoder.stream(project(hidden, ids), state, last=True)))
    assert reply.text == "Hi" and reply.unit_ids == expected != []
    chunks = [condition.shape[1] for condition, _ in states]
    assert chunks[:-1] == [decoder.chunk_conditions] * (len(chunks) - 1)


@pytest.mark.parametrize(
    ("said", "text", "deltas"),
    [
        ([72, 0xE2, 0x82, 257], "H\ufffd", ["H", "", "", "\ufffd"]),
        ([72, 0xE2, 0x82, 0xAC, 257], "H€", ["H", "", "", "€", ""]),
        ([0xF0, 0x9F, 257], "\ufffd", ["", "", "\ufffd"]),
        ([0xC3], "\ufffd", ["\ufffd"]),  # if `max_text_tokens` cuts the reply off
    ],
)
@pytest.mark.parametrize("speak", [False, True])
def test_a_reply_that_ends_inside_a_character(model, said, text, deltas, speak):
    tokens = iter(said)
    settings = {"greedy": False, "text_sampler": lambda logits: next(tokens), "max_text_tokens": len(said)}
    *events, done = stream_reply(model, QUESTION, 16_000, speak=speak, **settings)
    assert done.reply.text == text
    assert [event.text for event in events if isinstance(event, TextDelta)] == deltas
    assert not speak or any(isinstance(event, AudioChunk) for event in events)


def test_a_character_that_never_comes_is_not_waited_for(chat_tokenizer):
    """Otherwise every token would decode all those before it."""
    longest = []

    def decode(ids: list[int]) -> str:
        longest.append(len(ids))
        return chat_tokenizer.decode(ids)

    detokenize = Detokenizer(decode)
    ids = [0xE2] * 100 + [257] * 100 + chat_tokenizer.encode_text("Grüße")
    text = "".join(map(detokenize, ids)) + detokenize.flush()
    assert text == chat_tokenizer.decode(ids) == "\ufffd" * 100 + "Grüße"
    assert max(longest) <= 2 * MAX_PENDING_TOKENS and detokenize.flush() == ""

"""The stages: what each trains, the hand-off between them, and what they refuse."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_s2s.checkpoints.init_from import load_handoff
from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.stages import (
    EmpatheticInstructionTuning,
    LanguageModelPretraining,
    SpeechGenerationPretraining,
    SpeechUnderstandingPretraining,
)
from lightning_s2s.stages.free_answers import ctc_texts
from lightning_s2s.stages.optim import OptimizerOptions
from parts.batches import one_dialogue
from parts.fitting import changed_parts, fit
from parts.pickled_code import PickledCode
from parts.small_sizes import QWEN


@pytest.fixture
def parts(tokenizer_folder):
    """Builds new small components; the codec has the 1,000 units of the tiny corpus."""

    def build(hears: bool = True, speaks: bool = True, width: int = 16) -> dict:
        torch.manual_seed(0)
        found = {"llm": CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))}
        if hears:
            found["encoder"] = MelEncoder(width=width, num_layers=1, num_heads=2)
            found["adapter"] = ConvAdapter(inner_width=8)
        if speaks:
            found["speech_decoder"] = InterleavedSpeechDecoder("2:3", QWEN)
            found["vocoder"] = PocketVocoder(encoder_width=8, decoder_width=8)
        return found

    return build


@pytest.mark.parametrize(
    ("stage", "options", "trained"),
    [
        (SpeechUnderstandingPretraining, {"freeze": ["encoder.*", "llm.*", "speech_decoder.*"]}, {"adapter"}),
        (SpeechUnderstandingPretraining, {"freeze": ["llm.*"], "ctc_weight": 1.0}, {"encoder", "adapter"}),
        (SpeechGenerationPretraining, {"freeze": ["llm.*"], "condition": "text"}, {"speech_decoder"}),
        (SpeechGenerationPretraining, {"freeze": ["llm.*", "encoder.*", "adapter.*"]}, {"speech_decoder"}),
        (EmpatheticInstructionTuning, {"freeze": ["encoder.*"]}, {"adapter", "llm", "speech_decoder"}),
        (LanguageModelPretraining, {"freeze": ["encoder.*", "adapter.*", "speech_decoder.*"]}, {"llm"}),
    ],
)
def test_a_stage_changes_what_it_trains_and_nothing_else(stage, options, trained, parts, tiny_corpus, tmp_path):
    module = stage(**parts(), optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1), **options)
    before = fit(module, tiny_corpus, tmp_path)
    assert changed_parts(module, before) == trained
    written = load_model(tmp_path / "model")
    assert all(torch.equal(tensor, module.model.state_dict()[name]) for name, tensor in written.state_dict().items())


def test_lora_trains_its_matrices_alone(parts, tokenizer_folder, tiny_corpus, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder), lora=lora)
    module = EmpatheticInstructionTuning(
        **(parts() | {"llm": llm}), optimizer=OptimizerOptions(lr=1e-2, warmup_steps=1), freeze=["encoder.*"]
    )
    before = fit(module, tiny_corpus, tmp_path)
    after = module.model.llm.state_dict()
    changed = {name for name in after if not torch.equal(before[f"llm.{name}"], after[name])}
    assert changed and all("lora_" in name for name in changed)


def test_a_stage_starts_from_the_one_before(parts, tmp_path):
    earlier = SpeechToSpeechModel(**parts(speaks=False))
    torch.nn.init.constant_(earlier.adapter.norm.bias, 0.25)
    save_model(earlier, tmp_path / "run" / "model")
    stage = EmpatheticInstructionTuning(**parts(), init_from=str(tmp_path / "run"))
    assert (stage.model.adapter.norm.bias == 0.25).all()
    line = load_handoff(stage.model, tmp_path / "run" / "model")
    assert line.endswith("loaded encoder, adapter, llm; not in it: speech_decoder, vocoder")


def test_a_handoff_of_another_shape_loads_nothing(parts, tmp_path):
    save_model(SpeechToSpeechModel(**parts(speaks=False)), tmp_path)
    wider = SpeechToSpeechModel(**parts(speaks=False, width=32))
    before = {name: tensor.clone() for name, tensor in wider.encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"init_from: .*model\.safetensors: encoder: .* has shape .*needs"):
        load_handoff(wider, tmp_path)
    assert all(torch.equal(tensor, wider.encoder.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("content", ["missing", "empty", "pickled code"])
def test_a_handoff_that_can_not_be_read(content, parts, tmp_path):
    path = tmp_path / "last.ckpt"
    if content == "empty":
        path.write_bytes(b"")
    elif content == "pickled code":
        torch.save({"state_dict": PickledCode(tmp_path / "was_run")}, path)
    with pytest.raises(
        ValueError, match=r"init_from: .*last\.ckpt: (no such model|is empty|holds pickled code \(posix\.mkdir\))"
    ):
        EmpatheticInstructionTuning(**parts(), init_from=str(path))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["lm.*"]}, r"freeze: the pattern 'lm\.\*' matches no parameter; .*adapter, encoder, llm"),
        ({"freeze": ["*"]}, "every parameter is frozen"),
    ],
)
def test_freezing_is_checked(options, message, parts):
    with pytest.raises(ValueError, match=message):
        EmpatheticInstructionTuning(**parts(), **options)


@pytest.mark.parametrize(
    ("stage", "shape", "message"),
    [
        (SpeechUnderstandingPretraining, {"hears": False}, "needs encoder and adapter"),
        (SpeechGenerationPretraining, {"speaks": False}, "needs speech_decoder and vocoder"),
        (EmpatheticInstructionTuning, {"speaks": False}, "needs encoder, adapter, speech_decoder and vocoder"),
    ],
)
def test_a_stage_says_which_parts_it_needs(stage, shape, message, parts):
    with pytest.raises(ValueError, match=message):
        stage(**parts(**shape))


def test_text_conditions_are_the_tokens_that_the_hidden_states_predict(parts, monkeypatch):
    """The positions of `<|im_tts_start|>`, H, i, `<|im_tts_end|>` predict H, i, `<|im_tts_end|>`, `<|im_end|>`."""
    model = SpeechToSpeechModel(**parts(hears=False))
    dialogue = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": [{"text": "Hi", "speech_units": [1, 2]}]},
    ]
    encoded = model.llm.tokenizer.encode(dialogue)
    seen = []
    monkeypatch.setattr(
        model.speech_decoder,
        "embed_text",
        lambda ids: seen.append(ids) or torch.zeros(*ids.shape, model.speech_decoder.width),
    )
    model.forward_text_to_units(one_dialogue(encoded, torch.zeros(1, 0), units=[1, 2]))
    assert seen[0].tolist() == [[ord("H"), ord("i"), 261, 257]]


def test_ctc_texts_name_the_emotion_in_words():
    user = {"audio": "a.wav", "transcript": "I see.", "emotion": "sad"}
    row = {"messages": [{"role": "user", "content": [user, {"text": "?"}]}, {"role": "assistant", "content": "Oh."}]}
    assert ctc_texts(row) == ["(sad) I see."]
    del user["transcript"]
    with pytest.raises(ValueError, match="`transcript` beside `audio`"):
        ctc_texts(row | {"id": "x"})


@pytest.mark.parametrize(("precision", "expected"), [("bf16-mixed", False), ("32-true", True)])
def test_attention_on_a_cpu_leaves_the_flash_kernel_in_bfloat16(precision, expected, parts, tiny_corpus, tmp_path):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, stage, batch, batch_index):
            seen.append(torch.backends.cuda.flash_sdp_enabled())

    stage = SpeechUnderstandingPretraining(**parts(speaks=False))
    data = SpeechDialogueData(train=str(tiny_corpus.train), validation=str(tiny_corpus.validation))
    trainer = L.Trainer(
        accelerator="cpu", precision=precision, max_steps=1, limit_val_batches=0, logger=False, callbacks=[Watch()],
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(stage, data)
    assert seen == [expected] and torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_classes_of_the_ctc_loss_follow_an_llm_that_is_trained(frozen, parts):
    stage = SpeechUnderstandingPretraining(**parts(speaks=False), ctc_weight=1.0, freeze=["llm.*"] if frozen else [])
    with torch.no_grad():
        before = stage._ctc_classes()
        stage.model.llm.model.get_input_embeddings().weight.add_(torch.randn(16))
    assert torch.equal(stage._ctc_classes(), before) == frozen

"""The cache of a frozen encoder's hidden states: what it keeps, what it is keyed by, and where it is refused."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.encoders.whisper import WhisperEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.data.augmentation import Augmentation
from lightning_s2s.data.datamodule import SpeechDialogueData
from lightning_s2s.scale.encoder_cache import EncoderCache
from lightning_s2s.scale.parallelize import ScalingOptions
from lightning_s2s.stages import SpeechUnderstandingPretraining
from lightning_s2s.stages.optim import OptimizerOptions
from parts.small_sizes import QWEN, WHISPER
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding


def clips(*seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    waveforms = [torch.from_numpy(sweep(sec)) for sec in seconds]
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


def encoder(kind: str = "mel", seed: int = 0, **options):
    torch.manual_seed(seed)
    if kind == "mel":
        return MelEncoder(width=16, num_layers=1, num_heads=2, **options).eval()
    return WhisperEncoder(checkpoint=None, config=WHISPER, **options).eval()


def watch(found) -> list[int]:
    """How many clips the encoder hears in each call."""
    heard: list[int] = []
    found.register_forward_pre_hook(lambda _, arguments: heard.append(len(arguments[0])))
    return heard


@pytest.mark.parametrize(("kind", "options"), [("mel", {}), ("whisper", {}), ("whisper", {"real_frames_only": True})])
def test_a_clip_is_encoded_once_and_stays_the_same(kind, options, tmp_path):
    found = encoder(kind, **options)
    waveform, lengths = clips(0.6, 1.0, 0.8)
    with torch.no_grad():
        expected, counts = found(waveform, lengths)
    heard = watch(found)
    cache = EncoderCache(tmp_path, found)
    for _ in range(2):
        states, frames = cache(waveform, lengths)
        assert torch.equal(frames, counts) and states.dtype == expected.dtype
        for row, count in enumerate(counts.tolist()):
            assert torch.equal(states[row, :count], expected[row, :count])
            assert states[row, count:].abs().sum() == 0
    assert heard == [3]
    # Another batch, with one clip that is new: it alone is encoded.
    waveform, lengths = clips(0.8, 0.7)
    states, frames = cache(waveform, lengths)
    assert heard == [3, 1] and torch.equal(states[0, : frames[0]], expected[2, : counts[2]])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    assert not list(tmp_path.rglob(".*"))


def test_another_encoder_or_precision_has_files_of_its_own(tmp_path):
    batch = clips(0.6)
    EncoderCache(tmp_path, encoder())(*batch)
    others = [encoder(seed=1), encoder(gain_db=1.0)]
    for other in others:
        heard = watch(other)
        EncoderCache(tmp_path, other)(*batch)
        assert heard == [1]
    same = encoder()
    heard = watch(same)
    EncoderCache(tmp_path, same)(*batch)
    assert heard == []
    with torch.autocast("cpu", torch.bfloat16):
        EncoderCache(tmp_path, same)(*batch)
    assert heard == [1]


def test_a_broken_file_is_named(tmp_path):
    cache = EncoderCache(tmp_path, encoder())
    cache(*clips(0.6))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=f"encoder_cache: {path} can't be read"):
        cache(*clips(0.6))


def stage(tokenizer_folder, adapter=None, **options) -> SpeechUnderstandingPretraining:
    torch.manual_seed(0)
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))
    adapter = adapter or ConvAdapter(inner_width=8)
    options = {
        "freeze": ["llm.*", "encoder.*"],
        "optimizer": OptimizerOptions(warmup_steps=1),
        "num_generated": 0,
    } | options
    return SpeechUnderstandingPretraining(llm, MelEncoder(width=16, num_layers=1, num_heads=2), adapter, **options)


def test_training_is_the_same_with_and_without(tokenizer_folder, tiny_corpus, tmp_path):
    trained = []
    for folder in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        module = stage(tokenizer_folder, scaling=ScalingOptions(encoder_cache=folder))
        heard = watch(module.model.encoder)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, SpeechDialogueData(tiny_corpus.train, tiny_corpus.validation, max_batch_size=4))
        trained.append((module.model.adapter.state_dict(), sum(heard)))
    (plain, without), (filled, first), (read, second) = trained
    # The sanity check before the training, then two epochs, each with its validation.
    assert (without, first, second) == (4 + 2 * (12 + 4), 16, 0)
    for name, tensor in plain.items():
        assert_equal_but_for_rounding(filled[name], tensor)
        assert torch.equal(filled[name], read[name])


def test_where_it_is_refused(tokenizer_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"scaling.encoder_cache: got 'c'; only the outputs of a frozen encoder stay the same"
    ):
        stage(tokenizer_folder, freeze=["llm.*", "encoder.layers.*"], scaling=ScalingOptions(encoder_cache="c"))
    with pytest.raises(ValueError, match=r"scaling.encoder_cache: got 'c'; with the adapter's silence_padding false"):
        stage(
            tokenizer_folder,
            ConvAdapter(inner_width=8, silence_padding=False),
            scaling=ScalingOptions(encoder_cache="c"),
        )


def test_augmentation_is_refused_before_training(tokenizer_folder, tiny_corpus, tmp_path):
    module = stage(tokenizer_folder, scaling=ScalingOptions(encoder_cache=str(tmp_path / "cache")))
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"data.augmentation: must be null with scaling.encoder_cache"):
        trainer.fit(module, SpeechDialogueData(tiny_corpus.train, augmentation=Augmentation()))
    assert not (tmp_path / "cache").exists()

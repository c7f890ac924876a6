"""Parity with the published GLM-4-Voice decoder, run in float32 on tiny random weights: mel and waveform within 1e-3.

`golden/glm4_voice_decoder` has its weights as published (`flow.pt`, `hift.pt`) and what it computed. All sizes come
from the folder, from its `config.yaml` or from the shapes of its tensors. The estimator's number of attention heads is
in no shape: those that its tensors allow are tried, likeliest first, and one of them must give the published mel.
"""

from __future__ import annotations

import pytest
import torch
from glm4_voice_streaming import stream_difference
from safetensors.torch import load_file

from lightning_s2s.components.vocoders.glm4_voice import Glm4VoiceVocoder
from parts.decoder_sizes import estimator_heads, sizes_of
from parts.golden import golden_folder

FOLDER, pytestmark = golden_folder("glm4_voice_decoder", "flow.pt", "hift.pt", "golden.safetensors")
CLOSE = {"rtol": 0.0, "atol": 1e-3}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "golden.safetensors")


@pytest.fixture(scope="module")
def vocoder(golden) -> Glm4VoiceVocoder:
    if (FOLDER / "config.yaml").is_file():
        return Glm4VoiceVocoder(str(FOLDER)).eval()
    sizes = sizes_of(FOLDER)
    flow = sizes["flow"]
    inner = flow["num_heads"] * flow["attention_head_dim"]
    for heads in estimator_heads(inner, flow["attention_heads"], flow["encoder_size"] // flow["attention_heads"]):
        flow |= {"num_heads": heads, "attention_head_dim": inner // heads}
        vocoder = Glm4VoiceVocoder(str(FOLDER), config=sizes).eval()
        with torch.inference_mode():
            if torch.allclose(vocoder.flow(golden["token"].long()), golden["mel_full"], **CLOSE):
                return vocoder
    return Glm4VoiceVocoder(str(FOLDER), config=sizes_of(FOLDER)).eval()


@torch.inference_mode()
def test_mel_of_all_units_at_once(vocoder, golden):
    torch.testing.assert_close(vocoder.flow(golden["token"].long()), golden["mel_full"], **CLOSE)


@torch.inference_mode()
def test_mel_in_two_chunks_with_the_first_as_prompt(vocoder, golden):
    units, first = golden["token"].long(), golden["mel_first24"]
    torch.testing.assert_close(vocoder.flow(units[:, :24]), first, **CLOSE)
    torch.testing.assert_close(vocoder.flow(units, prompt=first), golden["mel_rest"], **CLOSE)


@torch.inference_mode()
def test_waveform_from_mel_and_source(vocoder, golden):
    torch.testing.assert_close(vocoder.hift.decode(golden["mel_full"], golden["source"]), golden["wav"], **CLOSE)


def test_synthesis_has_the_published_length(vocoder, golden):
    assert vocoder.synthesize(golden["token"].long()).shape == golden["wav"].shape
    assert vocoder.samples_per_unit * golden["token"].shape[1] - golden["wav"].shape[1] in range(256)


@torch.inference_mode()
def test_streamed_mel_stays_near_the_one_shot_mel(vocoder, golden):
    """The figure of docs/components.md: no further from one-shot than twice what other noise makes there."""
    figures = stream_difference(vocoder, golden["token"].long())
    published = torch.cat([golden["mel_first24"], golden["mel_rest"]], dim=-1)
    by_chunks = float((published - golden["mel_full"]).abs().mean())
    print(f"\nlog-mel L1 to one-shot: {figures}, published in two chunks: {by_chunks:.3f}")
    assert 0 < figures.window < 2 * figures.noise
    assert 0 < figures.streamed < 2 * figures.noise

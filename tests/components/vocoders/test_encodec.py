"""The vocoder `encodec` on small random weights: parity with the package, streams, batches, files, folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_s2s.checkpoints.model_folder import load_model, save_model
from lightning_s2s.components.vocoders.encodec import EncodecVocoder, build_encodec
from lightning_s2s.streaming.session import respond
from lightning_s2s.support.extras import MissingPackageError
from parts.small_codecs import assert_same_sound, noise, random_units, speaking_model, stream, tensors_in
from parts.sounds import sweep
from parts.tolerances import assert_equal_but_for_rounding

pytest.importorskip("encodec")
pytestmark = pytest.mark.filterwarnings("error:.*weight_norm.*:FutureWarning")

SMALL = {"n_filters": 2, "dimension": 8, "lstm": 2}
NUM_FRAMES = 21


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    """The package's own model, weight norm and all, with codebooks as small as what its encoder gives."""
    torch.manual_seed(0)
    model = build_encodec(SMALL).eval()
    for layer in model.quantizer.vq.layers:
        layer._codebook.embed.mul_(0.05)
    return model


@pytest.fixture(scope="module")
def checkpoint(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encodec") / "encodec_24khz.th"
    torch.save(published.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vocoder(checkpoint) -> EncodecVocoder:
    return EncodecVocoder(str(checkpoint), bandwidth=3.0, config=SMALL)


@pytest.fixture(scope="module")
def units(vocoder) -> torch.Tensor:
    return random_units(vocoder, 2, NUM_FRAMES * 4)


@pytest.mark.parametrize(
    ("bandwidth", "num_codebooks"), [(1.5, 2), (3.0, 4), (6, 8), (12.0, 16), (24.0, 32)], ids=lambda value: f"{value:g}"
)
def test_rates(bandwidth, num_codebooks):
    vocoder = EncodecVocoder(bandwidth=bandwidth, config=SMALL)
    assert (vocoder.sample_rate, vocoder.codebook_size, vocoder.codebooks_per_frame) == (24_000, 1024, num_codebooks)
    assert (vocoder.num_units, vocoder.unit_rate_hz) == (1024 * num_codebooks, 75.0 * num_codebooks)
    assert vocoder.samples_per_unit * num_codebooks == 320


@torch.no_grad()
def test_parity_with_the_package(published, vocoder):
    published.set_target_bandwidth(3.0)
    waveform = noise(1, 5000)
    ((codes, _),) = published.encode(waveform[:, None])
    units, counts = vocoder.tokenize(waveform, torch.tensor([5000]))
    assert counts.tolist() == [16 * 4] and len(codes.unique()) > 8
    assert units[0].tolist() == [int(codes[0, k, f]) + 1024 * k for f in range(16) for k in range(4)]
    assert_equal_but_for_rounding(vocoder.synthesize(units), published.decode([(codes, None)])[:, 0])


@pytest.mark.parametrize("empty_last", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 9, 28, 100])
def test_chunks_joined_equal_one_shot(vocoder, units, size, empty_last):
    expected = vocoder.synthesize(units)
    assert expected.shape == (2, NUM_FRAMES * 320)
    assert_same_sound(stream(vocoder, units, size, empty_last), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 6, 7, 8])
def test_short_replies_are_reflected_as_in_one_shot(vocoder, units, num_frames):
    some = units[:, : num_frames * 4]
    assert_same_sound(stream(vocoder, some, 4), vocoder.synthesize(some))


def test_sound_begins_with_the_seventh_frame_and_then_keeps_pace(vocoder, units):
    assert [chunk.shape[1] for chunk in stream(vocoder, units, 4)] == [0] * 6 + [7 * 320] + [320] * 14 + [0]


def test_the_state_does_not_grow(vocoder):
    state, sizes = vocoder.start_stream(), []
    for piece in random_units(vocoder, 1, 240).split(4, dim=1):
        vocoder.stream(piece, state, last=False)
        sizes.append(tensors_in(state))
    assert len(set(sizes[7:])) == 1 and sizes[-1] > 0


def test_batched_equals_single(vocoder, units):
    assert_equal_but_for_rounding(vocoder.synthesize(units)[1:], vocoder.synthesize(units[1:]))
    waveform = noise(3, 3000)
    waveform[1, 1001:] = 0
    together, counts = vocoder.tokenize(waveform, torch.tensor([3000, 1001, 0]))
    assert counts.tolist() == [40, 16, 0]
    assert torch.equal(vocoder.tokenize(waveform[1:2, :1001], torch.tensor([1001]))[0][0], together[1, :16])


def test_a_reply_through_a_model_folder(vocoder, tokenizer_folder, tmp_path):
    model = speaking_model(vocoder, tokenizer_folder)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.vocoder.init_args == {
        "checkpoint": None, "pretrained": False, "bandwidth": 3.0, "config": SMALL
    }  # fmt: skip
    reply, same = (respond(one, sweep(0.5), 16_000, max_text_tokens=30) for one in (model, again))
    assert len(reply.unit_ids) == 40 and reply.unit_ids == same.unit_ids
    assert len(reply.waveform) == 10 * 320 and torch.equal(reply.waveform, same.waveform)
    assert_equal_but_for_rounding(reply.waveform, vocoder.synthesize(torch.tensor([reply.unit_ids]))[0])


def test_safetensors_and_a_folder_give_the_same(published, checkpoint, units, tmp_path):
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    expected = EncodecVocoder(str(checkpoint), bandwidth=3.0, config=SMALL).synthesize(units)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert torch.equal(EncodecVocoder(str(path), bandwidth=3.0, config=SMALL).synthesize(units), expected)


def test_random_weights_code_something():
    torch.manual_seed(0)
    vocoder = EncodecVocoder(bandwidth=1.5, config=SMALL)
    assert vocoder.synthesize(random_units(vocoder, 1, 40)).std() > 1e-3


# --- what is refused ------------------------------------------------------------------------------------------------


def test_options(tmp_path):
    with pytest.raises(ValueError, match=r"bandwidth must be one of 1\.5, 3, 6, 12, 24; got 4"):
        EncodecVocoder(bandwidth=4)
    with pytest.raises(ValueError, match="config: unknown key 'filters'; known: n_filters, dimension, lstm"):
        EncodecVocoder(config={"filters": 3})
    with pytest.raises(ValueError, match="pretrained goes with neither checkpoint nor config"):
        EncodecVocoder(str(tmp_path), pretrained=True)


def test_files(checkpoint, published, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such file; expected EnCodec's weights"):
        EncodecVocoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"encodec_24khz\.th: .* has shape"):
        EncodecVocoder(str(checkpoint), config=SMALL | {"dimension": 12})
    state = dict(published.state_dict())
    state.pop("encoder.model.0.conv.conv.bias")
    torch.save(state, tmp_path / "short.th")
    with pytest.raises(ValueError, match=r"short\.th: .*missing \['encoder\.model\.0\.conv\.conv\.bias'\]"):
        EncodecVocoder(str(tmp_path / "short.th"), config=SMALL)


def test_pickled_code_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "code.th")
    with pytest.raises(ValueError, match=r"code\.th: holds .*no code was run"):
        EncodecVocoder(str(tmp_path / "code.th"), config=SMALL)


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "encodec.model", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'lightning-s2s\[codecs\]'"):
        EncodecVocoder(config=SMALL)


def test_without_a_network_pretrained_says_what_to_do(monkeypatch):
    def offline(*args, **options):
        assert options["weights_only"] is True
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"encodec_24khz-d7cc33bc\.th can't be loaded \(no route\); give checkpoint"):
        EncodecVocoder(pretrained=True)

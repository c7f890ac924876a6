"""`s3prl`: any upstream of the package S3PRL."""

from __future__ import annotations

import ast
import contextlib
import logging
import math
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_s2s.components.base import PlainValues
from lightning_s2s.components.contracts import AudioEncoder
from lightning_s2s.components.encoders.layers import LayerSum, find_layer
from lightning_s2s.components.registry import ENCODERS
from lightning_s2s.components.weights import parameters_in_memory
from lightning_s2s.support.wording import near_names

TAKES_CHECKPOINT = ("_local", "_custom", "_url")
"""Suffixes of upstreams that are built from a checkpoint given by the user."""
WITHOUT_WEIGHTS = ("fbank", "fbank_no_cmvn", "linear", "mel", "mfcc", "spectrogram", "stft_mag")
"""Upstreams that only compute features."""
BROKEN_UPSTREAMS = ("s3prl.upstream.byol_s.hubconf", "s3prl.upstream.mos_prediction.hubconf")
"""Modules of s3prl 0.4.18 that need removed parts of torchaudio; if one fails to import, so does every upstream."""
TENSOR = "__tensor__"
_ONE_AT_A_TIME = threading.Lock()
"""s3prl collects hidden states in the upstream itself, which concurrent forwards would mix up."""


@ENCODERS.register("s3prl")
class S3prlEncoder(AudioEncoder):
    """Any upstream of the package s3prl, by name or local checkpoint: 16 kHz -> 50 or 100 Hz, weighted layer sum.

    Source: S3PRL and SUPERB, Yang et al., arXiv:2105.01051. Clips of different length are encoded one at a time, since
    in many upstreams padding changes the result; for HuBERT, WavLM and wav2vec 2.0, `ssl` is faster.

    Args:
        upstream: Name, such as `fbank`, `wavlm_base_plus` (s3prl downloads it) or `wavlm_local`.
        checkpoint: File or URL for an upstream whose name ends in `_local`, `_custom` or `_url`.
        config: Instead of a checkpoint, its content with each tensor replaced by its shape, as stored in a model
            folder; the weights are zeros until they are loaded.
        layers: `weighted`, a learnable sum of all hidden states, or the index of one hidden state, as in s3prl.
        options: Further arguments of the upstream.
        trust_checkpoint: Whether to run code that a checkpoint holds beside tensors and plain values.
        pad_batches: Whether to encode a padded batch at once, as s3prl does.

    Raises:
        ValueError: There is no such upstream or layer, the layers can't be summed, or the checkpoint is missing or
            holds code.
    """

    paper = "arXiv:2105.01051"
    rates = "16 kHz -> 50 Hz or 100 Hz"
    size = "any: none (fbank), 95M (hubert), 317M (wavlm_large)"
    licence = "the upstream's own"
    extra = "ssl"
    trusts = ("trust_checkpoint",)
    sample_rate = 16_000

    def __init__(
        self,
        upstream: str,
        checkpoint: str | None = None,
        config: PlainValues | None = None,
        layers: int | Literal["weighted"] = "weighted",
        options: PlainValues | None = None,
        trust_checkpoint: bool = False,
        pad_batches: bool = False,
    ):
        super().__init__()
        _check_sources(upstream, checkpoint, config, options)
        self._outline = config
        if config is None and checkpoint is not None:
            checkpoint = _download(checkpoint)
            if Path(checkpoint).is_file():
                self._outline = outline(checkpoint, trust_checkpoint)
        elif config is not None and not trust_checkpoint:
            refuse_expressions(config, f"encoder s3prl: config of {upstream}")
        with parameters_in_memory(), contextlib.ExitStack() as stack:  # s3prl runs a forward pass while it builds
            file = checkpoint if config is None else stack.enter_context(file_of(config))
            self.encoder = _build(upstream, file, options, trust_checkpoint)
        place = find_layer(layers, self.encoder.num_layers, "encoder s3prl")
        widths, strides = self.encoder.hidden_sizes, self.encoder.downsample_rates
        if place is None and (len(set(widths)) > 1 or len(set(strides)) > 1):
            raise ValueError(
                f"encoder s3prl: layers of {upstream} can't be summed, having widths {sorted(set(widths))} and "
                f"downsampling {sorted(set(strides))}; choose one by its number"
            )
        self.layer_sum = LayerSum(len(widths)) if place is None and len(widths) > 1 else None
        self.place = place or 0
        self.width, self.stride = widths[self.place], strides[self.place]
        self.frame_rate_hz = self.sample_rate / self.stride
        self.pad_batches = self.depends_on_batch = pad_batches

    @classmethod
    def check_stored(cls, init_args: dict[str, Any]) -> None:
        """Refuse a folder without the outline of its checkpoint, unless the upstream has no weights."""
        upstream = init_args.get("upstream")
        if init_args.get("config") is None and upstream not in WITHOUT_WEIGHTS:
            raise ValueError(f"upstream: got {upstream!r}, for which s3prl fetches or unpickles a checkpoint")
        if not all(isinstance(value, bool | int | float) for value in (init_args.get("options") or {}).values()):
            raise ValueError(f"options: got {init_args['options']!r}; texts among them name files that s3prl reads")

    def pretrained_args(self, folder: Path) -> dict[str, Any]:
        """With the outline of the checkpoint, if there is one; otherwise the upstream locates its own files again."""
        if self._outline is None:
            return self.init_args
        return {**self.init_args, "checkpoint": None, "config": self._outline}

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = (lengths - 1) // self.stride + 1
        if self.pad_batches:
            return self._encode(waveform, lengths), counts
        clips: dict[int, Tensor] = {}
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            hidden_states = self._encode(waveform[rows, :length], lengths[rows])
            clips |= dict(zip(rows.tolist(), hidden_states, strict=True))
        return pad_sequence([clips[row] for row in range(len(lengths))], batch_first=True), counts

    def _encode(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        with _ONE_AT_A_TIME:
            hidden_states, _ = self._in_float32(waveform, lengths)
        return hidden_states[self.place] if self.layer_sum is None else self.layer_sum(hidden_states)

    def _in_float32(self, waveform: Tensor, lengths: Tensor) -> Any:
        """Run the upstream with float32 weights: many support no other precision."""
        tensors = dict([*self.encoder.named_parameters(), *self.encoder.named_buffers()])
        narrow = {name: x for name, x in tensors.items() if x.is_floating_point() and x.dtype != torch.float32}
        if not narrow:
            return self.encoder(waveform, lengths)
        widened = {name: tensor.float() for name, tensor in narrow.items()}
        return torch.func.functional_call(self.encoder, widened, (waveform, lengths))


def _check_sources(upstream: str, checkpoint: str | None, config: Any, options: Any) -> None:
    names = import_s3prl().S3PRLUpstream.available_names()
    if upstream not in names:
        near = near_names(upstream, names)
        hint = f"did you mean {near}? " if near else ""
        raise ValueError(f"encoder s3prl: unknown upstream {upstream!r}; {hint}s3prl's documentation lists them")
    takes = upstream.endswith(TAKES_CHECKPOINT)
    if not takes and (checkpoint is not None or config is not None):
        raise ValueError(
            f"encoder s3prl: upstream {upstream} brings its own weights, and checkpoint must be null; it is for names "
            f"that end in {', '.join(TAKES_CHECKPOINT)}"
        )
    if takes and checkpoint is None and config is None and not options:
        raise ValueError(f"encoder s3prl: upstream {upstream} needs a checkpoint")
    if checkpoint is not None and not _is_url(checkpoint) and not Path(checkpoint).exists():
        raise ValueError(f"encoder s3prl: checkpoint {checkpoint}: no such file")


def _is_url(checkpoint: str) -> bool:
    return checkpoint.startswith(("http://", "https://"))


def _download(checkpoint: str) -> str:
    """The local path of a checkpoint; a URL is downloaded to s3prl's own cache."""
    if not _is_url(checkpoint):
        return checkpoint
    import_s3prl()
    from s3prl.util.download import urls_to_filepaths

    try:
        return str(urls_to_filepaths(checkpoint))
    except OSError as error:
        raise ValueError(f"encoder s3prl: checkpoint {checkpoint}: can't be fetched ({error})") from None


def import_s3prl() -> ModuleType:
    """`s3prl.nn`, without the upstreams that can't be imported any more."""
    for name in BROKEN_UPSTREAMS:
        sys.modules.setdefault(name, ModuleType(name))
    logging.getLogger("s3prl.upstream.espnet_hubert").setLevel(logging.ERROR)  # warns that ESPnet isn't installed
    import s3prl.nn

    return s3prl.nn


def _build(upstream: str, checkpoint: str | None, options: dict[str, Any] | None, trust: bool) -> Any:
    try:
        with _pickles(trust):
            return import_s3prl().S3PRLUpstream(upstream, path_or_url=checkpoint, extra_conf=options)
    except pickle.UnpicklingError:
        raise ValueError(
            f"encoder s3prl: {checkpoint or upstream}: the checkpoint holds more than tensors and plain values, which "
            "could run any code; trust_checkpoint: true loads it all the same"
        ) from None


@contextlib.contextmanager
def _pickles(trusted: bool) -> Iterator[None]:
    """Inside, any `torch.load`, also s3prl's own, refuses pickled code unless the file is trusted."""
    variable = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" if trusted else "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


# --- a checkpoint without its tensors --------------------------------------------------------------------------------


def outline(checkpoint: str, trusted: bool = False) -> dict[str, Any] | None:
    """The content of a checkpoint with each tensor replaced by its dtype and shape, for storing it as JSON.

    None if the checkpoint holds anything but tensors and plain values: then the upstream can't be built without it.

    Raises:
        ValueError: The checkpoint is not trusted, and a string in it is an expression that s3prl could evaluate.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if not trusted:
            refuse_expressions(content, f"encoder s3prl: {checkpoint}")
        return _without_tensors(content)
    except (pickle.UnpicklingError, TypeError):
        return None


HARMLESS = (
    ast.Expression, ast.Constant, ast.Name, ast.Attribute, ast.Load, ast.Tuple, ast.List, ast.BinOp, ast.UnaryOp,
    ast.Add, ast.Sub, ast.Mult, ast.unaryop,
)  # fmt: skip
"""Syntax nodes that can only build lists of numbers."""
LONGEST_EXPRESSION = 10_000
"""Maximum length of an expression, and of the lists that it builds."""


def refuse_expressions(content: Any, where: str) -> None:
    """Refuse strings that are more than lists of numbers: s3prl passes some strings of a checkpoint to `eval`.

    An example is `conv_feature_layers`, which is `[(512, 10, 5)] + [(512, 3, 2)] * 4` in many checkpoints.

    Raises:
        ValueError: There is such a string.
    """
    values = [content]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            values += value
        elif isinstance(value, str) and _has_effects(value):
            raise ValueError(
                f"{where}: the text {value[:80]!r} is code, which s3prl could run; trust_checkpoint: true loads it "
                "all the same"
            )


def _has_effects(text: str) -> bool:
    """Whether evaluating a string could do more than build short lists of numbers."""
    if len(text) > LONGEST_EXPRESSION:
        return True
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError):  # `eval` would fail as well
        return False
    except (RecursionError, MemoryError):
        return True
    operands = [side for node in nodes if isinstance(node, ast.BinOp) for side in (node.left, node.right)]
    factors = [side.value for side in operands if isinstance(side, ast.Constant) and isinstance(side.value, int)]
    size = math.prod(max(1, factor) for factor in factors)
    return size > LONGEST_EXPRESSION or not all(isinstance(node, HARMLESS) for node in nodes)


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {TENSOR: [str(value.dtype).removeprefix("torch."), *value.shape]}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("JSON has no other keys than strings")
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"JSON has no {type(value).__name__}")


@contextlib.contextmanager
def file_of(config: dict[str, Any]) -> Iterator[str]:
    """A temporary checkpoint file with this outline and zeros as weights."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict) and TENSOR in value:
            dtype, *shape = value[TENSOR]
            return torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)  # stored as a single number
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        return [fill(item) for item in value] if isinstance(value, list) else value

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save(fill(config), path)
        yield str(path)

"""Hidden states of a frozen encoder on disk, so that each clip is encoded once instead of once per epoch."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_s2s.components.contracts import Adapter, AudioEncoder
from lightning_s2s.components.weights import weights_fingerprint, write_tensors
from lightning_s2s.data.batch import EncodedAudio

TENSOR_NAME = "hidden_states"


class EncoderCache:
    """An encoder that stores its output for each clip in a file, and reads it from there the next time.

    A file is named by a hash of the clip's samples, in a folder named by a fingerprint of the encoder's class, options,
    weights and precision: whatever changes the hidden states makes another file. Files are written atomically, so
    several processes can share a folder. Only a clip's own frames are stored, as the encoder computed them in the batch
    in which the clip first came; the padding of a batch is zeros.

    Args:
        folder: Folder of the files; it is created if it is missing.
        encoder: The encoder; it must be in eval mode whenever the cache is called.
    """

    def __init__(self, folder: str | Path, encoder: AudioEncoder):
        self.folder, self.encoder = Path(folder), encoder

    @torch.no_grad()
    def __call__(self, waveform: Tensor, lengths: Tensor) -> EncodedAudio:
        """As `AudioEncoder.forward`: (B, T) and (B,) samples -> (B, F, D) and (B,) frames.

        Raises:
            ValueError: A file can't be read.
        """
        folder = self.folder / self._fingerprint(waveform.device.type)
        clips = zip(waveform.cpu(), lengths.tolist(), strict=True)
        names = [hashlib.sha256(clip[:length].numpy().tobytes()).hexdigest()[:40] for clip, length in clips]
        paths = [folder / name[:2] / f"{name[2:]}.safetensors" for name in names]
        missing = [number for number, path in enumerate(paths) if not path.is_file()]
        if missing:
            missing_lengths = lengths[missing]
            states, frames = self.encoder(waveform[missing, : int(missing_lengths.max())], missing_lengths)
            for number, clip, count in zip(missing, states, frames.tolist(), strict=True):
                write_tensors({TENSOR_NAME: clip[:count]}, paths[number])
        stored = [_read(path) for path in paths]
        counts = torch.tensor([len(states) for states in stored], device=waveform.device)
        return EncodedAudio(pad_sequence(stored, batch_first=True).to(waveform.device), counts)

    @functools.cached_property
    def _weights_fingerprint(self) -> str:
        return weights_fingerprint(self.encoder)

    def _fingerprint(self, device_type: str) -> str:
        """Fingerprint of everything that the hidden states depend on, except the clip."""
        autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        options = {key: value for key, value in self.encoder.init_args.items() if key != "checkpoint"}
        settings = json.dumps([self._weights_fingerprint, options, str(autocast)], sort_keys=True, default=str)
        return hashlib.sha256(settings.encode()).hexdigest()[:20]


def cache_frozen_encoder(encoder: AudioEncoder | None, adapter: Adapter | None, folder: str) -> EncoderCache:
    """Build the cache after checking that the hidden states of a clip never change.

    Raises:
        ValueError: There is no encoder, it is trained, or its output for a clip depends on the rest of the batch.
    """
    prefix = f"scaling.encoder_cache: got {folder!r}; "
    if encoder is None or adapter is None:
        raise ValueError(f"{prefix}without an encoder there is nothing to cache")
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ValueError(
            f"{prefix}only the outputs of a frozen encoder stay the same: freeze encoder.*, or leave it out"
        )
    if adapter.reads_padding:
        raise ValueError(
            f"{prefix}with the adapter's silence_padding false, a clip's last positions depend on the encoder's "
            "padding, which isn't stored"
        )
    if encoder.depends_on_batch:
        raise ValueError(
            f"{prefix}with the encoder's pad_batches, its output for a clip depends on the batch: set pad_batches to "
            "false, or leave encoder_cache out"
        )
    return EncoderCache(folder, encoder)


def _read(path: Path) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(TENSOR_NAME)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"encoder_cache: {path} can't be read ({error}); delete it to have it made again") from None

"""Hidden states of a frozen encoder on disk, so that every clip is encoded once and not once an epoch."""

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

NAME = "hidden_states"


class EncoderCache:
    """The output of an encoder for each clip, kept in a file of its own and read from there the next time.

    A file is named after the clip's samples and lies in a folder that is named after the encoder's class, options,
    weights and precision: whatever changes the hidden states makes another file. Files are written atomically, so that
    several processes can share a folder. Only a clip's own frames are kept, as the encoder computed them in the batch
    in which the clip came first; the padding of a batch is zeros.

    Args:
        folder: Folder of the files; it is made when it is missing.
        encoder: The encoder; it must be in eval mode whenever the cache is called.
    """

    def __init__(self, folder: str | Path, encoder: AudioEncoder):
        self.folder, self.encoder = Path(folder), encoder

    @torch.no_grad()
    def __call__(self, waveform: Tensor, lengths: Tensor) -> EncodedAudio:
        """As `AudioEncoder.forward`: (B, T) and (B,) samples -> (B, F, D) and (B,) frames.

        Raises:
            ValueError: A file is broken.
        """
        folder = self.folder / self._encoder_name(waveform.device.type)
        clips = zip(waveform.cpu(), lengths.tolist(), strict=True)
        names = [hashlib.sha256(clip[:length].numpy().tobytes()).hexdigest()[:40] for clip, length in clips]
        paths = [folder / name[:2] / f"{name[2:]}.safetensors" for name in names]
        missing = [number for number, path in enumerate(paths) if not path.is_file()]
        if missing:
            unheard = lengths[missing]
            states, frames = self.encoder(waveform[missing, : int(unheard.max())], unheard)
            for number, clip, count in zip(missing, states, frames.tolist(), strict=True):
                write_tensors({NAME: clip[:count]}, paths[number])
        kept = [_read(path) for path in paths]
        counts = torch.tensor([len(states) for states in kept], device=waveform.device)
        return EncodedAudio(pad_sequence(kept, batch_first=True).to(waveform.device), counts)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return weights_fingerprint(self.encoder)

    def _encoder_name(self, device_type: str) -> str:
        """Fingerprint of everything but the clip that the hidden states depend on."""
        autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        options = {key: value for key, value in self.encoder.init_args.items() if key != "checkpoint"}
        settings = json.dumps([self._fingerprint, options, str(autocast)], sort_keys=True, default=str)
        return hashlib.sha256(settings.encode()).hexdigest()[:20]


def cache_frozen_encoder(encoder: AudioEncoder | None, adapter: Adapter | None, folder: str) -> EncoderCache:
    """A cache for an encoder whose hidden states of a clip never change.

    Raises:
        ValueError: There is no encoder, it is trained, or its output depends on what else is in the batch.
    """
    refused = f"scaling.encoder_cache: got {folder!r}; "
    if encoder is None or adapter is None:
        raise ValueError(f"{refused}without an encoder there is nothing to keep")
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ValueError(
            f"{refused}only the outputs of a frozen encoder stay the same: freeze encoder.*, or leave it out"
        )
    if adapter.reads_padding:
        raise ValueError(
            f"{refused}with the adapter's silence_padding false, a clip's last positions depend on the encoder's "
            "padding, which isn't kept"
        )
    if encoder.depends_on_batch:
        raise ValueError(
            f"{refused}with the encoder's pad_batches, its output for a clip depends on the batch: set pad_batches to "
            "false, or leave encoder_cache out"
        )
    return EncoderCache(folder, encoder)


def _read(path: Path) -> Tensor:
    """(F, D), memory-mapped."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(NAME)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"encoder_cache: {path} can't be read ({error}); delete it, and it is made again") from None

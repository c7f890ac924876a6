"""Sound as a page can carry it: pictures and audio as data URIs, so that one file holds everything."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FRAME_RATE_HZ = 80
NUM_MELS = 64
NUM_LEVELS = 16


def to_array(waveform: np.ndarray | Tensor) -> np.ndarray:
    """(T,) tensor or array on any device -> (T,) float32 array in [-1, 1], what is not a number as silence.

    Raises:
        ValueError: `waveform` is not 1-D.
    """
    import numpy as np

    if hasattr(waveform, "detach"):
        waveform = waveform.detach().float().cpu().numpy()
    array = np.nan_to_num(np.asarray(waveform, dtype=np.float32), posinf=0.0, neginf=0.0)
    if array.ndim != 1:
        raise ValueError(f"waveform: must be (T,), one channel; got the shape {array.shape}")
    return np.clip(array, -1.0, 1.0)


def audio_uri(waveform: np.ndarray | Tensor, sample_rate: int) -> str:
    """(T,) -> a data URI of MP3 at about 45 kbit/s; a rate that MP3 doesn't know is resampled to 24 kHz.

    MP3 plays in every browser and is encoded at five times the speed of Opus, where a page has hundreds of clips.
    """
    import soundfile as sf
    import soxr

    array = to_array(waveform)
    if sample_rate not in MP3_RATES:
        array, sample_rate = soxr.resample(array, sample_rate, 24_000).clip(-1.0, 1.0), 24_000
    buffer = io.BytesIO()
    sf.write(buffer, array, sample_rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.5)
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class MelPainter:
    """Draws log-mel spectrograms as small PNGs of black ink with the level as opacity: they fit any background.

    The level that is drawn fullest is shared by all pictures of a painter, so that a quiet voice looks quiet.

    Args:
        loudest: natural-log mel level drawn as full ink.
        range_db: what lies this far below it is left blank.
    """

    def __init__(self, loudest: float = 1.0, range_db: float = 52.0):
        self.loudest, self.range = loudest, range_db / 8.686
        self._mels: dict[int, object] = {}

    def levels(self, waveform: np.ndarray | Tensor, sample_rate: int) -> np.ndarray:
        """(T,) -> (NUM_MELS, F) natural-log mel levels, FRAME_RATE_HZ frames per second."""
        import torch

        from lightning_s2s.components.log_mel import LogMelSpectrogram

        if sample_rate not in self._mels:
            self._mels[sample_rate] = LogMelSpectrogram(
                sample_rate, NUM_MELS, sample_rate // FRAME_RATE_HZ, round(0.04 * sample_rate)
            )
        with torch.inference_mode():
            return self._mels[sample_rate](torch.from_numpy(to_array(waveform)).unsqueeze(0))[0].numpy()

    def png_uri(self, waveform: np.ndarray | Tensor, sample_rate: int) -> str:
        """(T,) -> a data URI of the picture, low frequencies at the bottom; one blank column for no sound at all."""
        import numpy as np
        from PIL import Image

        levels = self.levels(waveform, sample_rate) if len(waveform) >= sample_rate // FRAME_RATE_HZ else None
        ink = np.zeros((NUM_MELS, 1)) if levels is None or not levels.size else 1 + (levels - self.loudest) / self.range
        image = Image.fromarray((ink.clip(0, 1) * (NUM_LEVELS - 1)).round().astype(np.uint8)[::-1].copy(), mode="P")
        image.putpalette([0, 0, 0] * NUM_LEVELS)
        opacity = bytes(round(255 * level / (NUM_LEVELS - 1)) for level in range(NUM_LEVELS))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", bits=4, transparency=opacity, optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def clip_player(
    kind: str, label: str, waveform: np.ndarray | Tensor, rate: int, longest_sec: float, painter: MelPainter
) -> str:
    """A button that plays (T,) at `rate` Hz; its picture is as wide as it is long beside the longest of its group."""
    seconds = len(waveform) / rate
    return (
        f"<div class='clip'><button type='button' class='play {kind}' aria-pressed='false' hidden "
        f"aria-label='{escape(label)}, {seconds:.1f} seconds'><span class='knob'></span>"
        f"<span><span class='track' style='--length:{100 * seconds / longest_sec:.1f}%'>"
        f"<img alt='' src='{painter.png_uri(waveform, rate)}'></span></span>"
        f"<span class='length'>{seconds:.1f} s</span></button>"
        f"<audio controls preload='none' src='{audio_uri(waveform, rate)}'></audio></div>"
    )

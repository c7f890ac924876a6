"""Pictures and audio for pages, as data URIs, so that one file holds everything."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from lightning_s2s.evaluation.results import percentile

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FRAME_RATE_HZ = 80
NUM_MELS = 64
NUM_LEVELS = 16
CURVE_WIDTH, CURVE_HEIGHT = 150, 44

Sound: TypeAlias = "tuple[np.ndarray | Tensor, int]"
"""(T,) in [-1, 1], and its sample rate in Hz."""


def to_array(waveform: np.ndarray | Tensor) -> np.ndarray:
    """(T,) tensor or array on any device -> (T,) float32 array in [-1, 1]; NaN and infinity become 0.

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
    """(T,) -> data URI of an MP3 at about 45 kbit/s, resampled to 24 kHz if MP3 does not have the sample rate.

    MP3 plays in every browser and encodes five times as fast as Opus: a page may have hundreds of clips.
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
    """Draws log-mel spectrograms as small PNGs in black with the level as opacity, for any background.

    All pictures of a painter share one scale of levels, so that a quiet voice looks quiet.

    Args:
        loudest: Natural-log mel level that is drawn opaque.
        range_db: Levels this far below `loudest` are transparent.
    """

    def __init__(self, loudest: float = 1.0, range_db: float = 52.0):
        self.loudest, self.range = loudest, range_db / 8.686
        self._mels: dict[int, nn.Module] = {}

    def levels(self, waveform: np.ndarray | Tensor, sample_rate: int) -> np.ndarray:
        """(T,) -> (NUM_MELS, F) natural-log mel levels at FRAME_RATE_HZ."""
        import torch

        from lightning_s2s.components.log_mel import LogMelSpectrogram

        if sample_rate not in self._mels:
            self._mels[sample_rate] = LogMelSpectrogram(
                sample_rate, NUM_MELS, sample_rate // FRAME_RATE_HZ, round(0.04 * sample_rate)
            )
        with torch.inference_mode():
            return self._mels[sample_rate](torch.from_numpy(to_array(waveform)).unsqueeze(0))[0].numpy()

    def png_uri(self, waveform: np.ndarray | Tensor, sample_rate: int) -> str:
        """(T,) -> data URI of the picture, low frequencies at the bottom; one blank column if there is no frame."""
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


class ClipPlayers:
    """Prepares the recordings of a page for playing: MP3, spectrogram and length.

    The spectrograms of one kind share a scale: its top is the 90th percentile of the recordings' loudest levels.

    Args:
        sounds: Kind of recording (question, reply) -> all recordings of that kind on the page.
    """

    def __init__(self, sounds: Mapping[str, Sequence[Sound | None]]):
        self.painters = {kind: MelPainter() for kind in sounds}
        for kind, painter in self.painters.items():
            peaks = [painter.levels(*sound).max() for sound in sounds[kind] if is_audible(sound)]
            painter.loudest = max(percentile(peaks, 90), -9.0) if peaks else 0.0

    def clip(self, kind: str, label: str, sound: Sound | None) -> dict[str, Any] | None:
        """Values of the macro `clip`; None for a recording that is missing or too short.

        Args:
            kind: Kind of the recording.
            label: What the button does, in words.
            sound: The recording.
        """
        if not is_audible(sound):
            return None
        seconds, picture = len(sound[0]) / sound[1], self.painters[kind].png_uri(*sound)
        return {"kind": kind, "label": label, "seconds": seconds, "picture": picture, "audio": audio_uri(*sound)}


def is_audible(sound: Sound | None) -> TypeGuard[Sound]:
    """True for a recording of at least 20 ms."""
    return sound is not None and len(sound[0]) >= sound[1] // 50


def draw_curve(name: str, points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """Values of the macro `curve` for a metric's (step, value) points; None for fewer than two numbers."""
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) < 2:
        return None
    steps, values = zip(*points, strict=True)
    x_scale = (CURVE_WIDTH - 2) / max(1, steps[-1] - steps[0])
    y_scale = (CURVE_HEIGHT - 6) / max(1e-12, max(values) - min(values))
    xy = [(1 + x_scale * (step - steps[0]), CURVE_HEIGHT - 3 - y_scale * (v - min(values))) for step, v in points]
    return {
        "name": name,
        "first": f"{values[0]:.3g}",
        "last": f"{values[-1]:.3g}",
        "width": CURVE_WIDTH,
        "height": CURVE_HEIGHT,
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in xy),
    }

"""Downmix to mono that neither loses level to silent channels nor audio to channels that cancel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SILENT = 1e-4
"""A channel is silent if the power of its loudest segment is less than this share (-40 dB) of the loudest channel's."""
CANCELLED = 1e-2
"""A segment is lost if the mix has less than this share (-20 dB) of the loudest channel's power."""
MAX_SEGMENTS = 1000


class Downmix(NamedTuple):
    """The mono waveform.

    Attributes:
        waveform: (T,) float32.
        problem: Description of channels that cancel, and how they were mixed; empty if none do.
    """

    waveform: NDArray[np.float32]
    problem: str = ""


def mix_down(samples: NDArray[np.float32], sample_rate: int) -> Downmix:
    """The mean of the channels that carry signal, or the loudest channel if they cancel.

    Channels cancel if, in a segment of a second (longer in long audio), their mean is over 20 dB below the loudest of
    them, and not only because they are active in turns. If both lose audio, the one that loses fewer segments is used.

    Args:
        samples: (T, C) float32, T at least 1.
        sample_rate: Sample rate in Hz.
    """
    if samples.shape[1] == 1:
        return Downmix(samples[:, 0])
    products = _products(samples, max(sample_rate, -(-len(samples) // MAX_SEGMENTS)))
    power = np.diagonal(products, axis1=1, axis2=2)  # (segments, C)
    loudest = int(power.sum(axis=0).argmax())
    carries = power.max(axis=0) > SILENT * power.max()
    if not carries.any():  # silence, or only an offset
        carries[:] = True
    audible = power.max(axis=1) > SILENT * power.max()

    def lost(weights: NDArray[np.float64]) -> int:
        mixed = np.einsum("i,nij,j->n", weights, products, weights)
        apart = power @ weights**2  # as if the channels were uncorrelated
        return int((audible & (mixed < CANCELLED * power.max(axis=1)) & (mixed < 0.5 * apart)).sum())

    def silenced(channel: int) -> int:
        return int((audible & (power[:, channel] < CANCELLED * power.max(axis=1))).sum())

    losses = lost(carries / carries.sum())
    if losses and silenced(loudest) <= losses:
        taken = f"channel {loudest + 1}, the loudest, is taken alone"
        waveform = np.ascontiguousarray(samples[:, loudest])
    else:
        taken = "a part is lost in their mean, and more in each channel alone"
        waveform = (samples if carries.all() else samples[:, carries]).mean(axis=1)
    return Downmix(waveform, f"channels that cancel each other out: {taken}" if losses else "")


def _products(samples: NDArray[np.float32], length: int) -> NDArray[np.float64]:
    """(segments, C, C): covariances of the channels."""
    found = []
    for start in range(0, len(samples), length):
        segment = samples[start : start + length].astype(np.float64)
        segment -= segment.mean(axis=0)
        found.append(segment.T @ segment)
    return np.stack(found)

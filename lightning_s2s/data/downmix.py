"""Several channels -> one, with nothing lost: neither the level among silent channels nor sound that cancels out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SILENT = 1e-4
"""A channel whose loudest stretch has less than this share of the power (-40 dB) of the loudest channel's is silent."""
CANCELLED = 1e-2
"""A stretch is lost where the mix has less than this share of the loudest channel's power: -20 dB."""
STRETCHES = 1000
"""At most so many are looked at."""


class Downmix(NamedTuple):
    """One channel of several.

    Attributes:
        waveform: (T,) float32.
        problem: "channels that cancel each other out" and what was done about it; "" where they don't.
    """

    waveform: NDArray[np.float32]
    problem: str = ""


def mix_down(samples: NDArray[np.float32], sample_rate: int) -> Downmix:
    """The mean of the channels that carry signal; where they cancel each other out, the loudest channel alone.

    Channels cancel if in a stretch of a second (longer in long audio) their mean lies over 20 dB below the loudest of
    them, by more than comes of channels that speak in turns. With a part of the sound lost either way, that is taken
    which loses fewer stretches.

    Args:
        samples: (T, C) float32, T at least 1.
        sample_rate: Hz.
    """
    if samples.shape[1] == 1:
        return Downmix(samples[:, 0])
    products = _products(samples, max(sample_rate, -(-len(samples) // STRETCHES)))
    power = np.diagonal(products, axis1=1, axis2=2)  # (stretches, C)
    loudest = int(power.sum(axis=0).argmax())
    carries = power.max(axis=0) > SILENT * power.max()
    if not carries.any():  # silence, or an offset alone
        carries[:] = True
    audible = power.max(axis=1) > SILENT * power.max()

    def lost(weights: NDArray[np.float64]) -> int:
        mixed = np.einsum("i,nij,j->n", weights, products, weights)
        apart = power @ weights**2  # as if the channels had nothing in common
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
    """(stretches, C, C): what the channels have in common, offsets left out."""
    found = []
    for start in range(0, len(samples), length):
        stretch = samples[start : start + length].astype(np.float64)
        stretch -= stretch.mean(axis=0)
        found.append(stretch.T @ stretch)
    return np.stack(found)

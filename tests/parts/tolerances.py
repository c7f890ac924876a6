"""How far two float results may lie apart that differ only in the order of their arithmetic.

Another CPU, batch size, chunk or number of threads takes other kernels, which add the same products in another order.
A sum of n products then lies within n * eps of sum |a * b| (Higham, Accuracy and Stability of Numerical Algorithms,
Sec. 3.1; about sqrt(n) * eps where the errors are random), and layers pass their errors on. So what counts is the
size of what was added up, not that of the single result, which may be close to zero: tolerances here are relative to
the largest value of the tensor, and a multiple of the spacing eps of its dtype. One CPU's errors are no measure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDINGS = 1000
"""In units of eps, for a few layers of some hundred terms each; mistakes in the arithmetic are far larger."""


def tolerance(expected: Tensor, roundings: float = ROUNDINGS) -> float:
    """Largest difference that rounding explains: `roundings` * eps of the largest expected value."""
    peak = float(expected.detach().abs().max()) if expected.numel() else 0.0
    assert math.isfinite(peak)
    return roundings * torch.finfo(expected.dtype).eps * peak


def assert_equal_but_for_rounding(found: Tensor, expected: Tensor, roundings: float = ROUNDINGS) -> None:
    """Two tensors of one shape and dtype are equal within their `tolerance`."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance(expected, roundings))


def roundings_of_pitch(num_samples: int, sample_rate: int, pitch_hz: float, harmonics: float) -> float:
    """Roundings, in units of eps, in a sound whose pitch comes from a network in float32.

    A pitch that is off by some eps shifts the phase by as much in every cycle, and the phase of a harmonic by its
    number times that: 2 pi * cycles * harmonics * 6 eps.
    """
    return 6 * 2 * math.pi * num_samples * pitch_hz / sample_rate * harmonics


def assert_same_pocket_sound(found: Tensor, expected: Tensor) -> None:
    """Two waveforms (..., T) of `pocket` at 16 kHz are equal: pulses at about 200 Hz, with 40 harmonics below 8 kHz."""
    assert_equal_but_for_rounding(found, expected, roundings_of_pitch(expected.shape[-1], 16_000, 200.0, 40))

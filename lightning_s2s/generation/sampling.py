"""Sampling a token from logits, for the LLM and the speech decoder alike."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from lightning_s2s.support.checks import all_finite, check_count, check_number


@dataclass
class Sampler:
    """Greedy choice, or sampling with temperature, top-k and top-p (nucleus), with a repetition penalty.

    Args:
        temperature: Sampling temperature; 0 takes the most likely token.
        top_k: Draw among the k most likely tokens; 0 draws among all.
        top_p: Draw among the most likely tokens that make up this share of the probability.
        repetition_window: Number of last drawn tokens that `repetition_penalty` applies to; 0 is all.
        repetition_penalty: Divides the positive logits, and multiplies the negative ones, of tokens drawn within the
            window; 1 is no penalty.
        seed: Seed of the draws; None uses torch's global generator.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_window: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    drawn: list[int] = field(default_factory=list, repr=False)
    generator: torch.Generator | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 100)
        check_number("top_p", self.top_p, 0, 1)
        check_count("top_k", self.top_k, 0)
        check_count("repetition_window", self.repetition_window, 0)
        check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        if self.seed is not None:
            check_seed(self.seed)

    def __call__(self, logits: Tensor) -> int:
        """Logits (V,) -> one id."""
        logits = logits.float()
        if self.repetition_penalty != 1.0 and self.drawn:
            recent = torch.tensor(self.drawn[-self.repetition_window :], device=logits.device).unique()
            values = logits[recent]
            scaled = torch.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
            logits = logits.index_copy(0, recent, scaled)
        token = int(logits.argmax()) if self.temperature == 0 else self._draw(logits / self.temperature)
        self.drawn.append(token)
        return token

    def forget(self) -> None:
        """Clear the tokens that the repetition penalty applies to."""
        self.drawn.clear()

    def fresh(self) -> Sampler:
        """A sampler with the same options that has drawn nothing yet: every stream needs one of its own."""
        sampler = copy.copy(self)
        sampler.drawn = []
        sampler.generator = self.generator if self.seed is None else None
        return sampler

    def _draw(self, logits: Tensor) -> int:
        if self.top_k:
            threshold = logits.topk(min(self.top_k, len(logits))).values[-1]
            logits = logits.masked_fill(logits < threshold, float("-inf"))
        if self.top_p < 1.0:
            ordered, order = logits.sort(descending=True)
            beyond = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= self.top_p
            beyond[0] = False  # the most likely token stays, however small the nucleus
            logits = logits.index_fill(0, order[beyond], float("-inf"))
        if self.generator is None and self.seed is not None:
            self.generator = torch.Generator(logits.device).manual_seed(self.seed)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator))


def check_seed(seed: Any) -> int:
    """Check that `seed` is one that torch's generators accept.

    Raises:
        ValueError: It is not.
    """
    return check_count("seed", seed, -(2**63), 2**63 - 1)


def check_finite(values: Tensor, component: str, what: str) -> None:
    """Check that a component's output is finite: broken weights or too narrow a dtype make it NaN or infinite.

    Args:
        values: The output, of any shape.
        component: Name of the component, for the message.
        what: Name of the output in the plural, for the message.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    if not all_finite(values):
        raise ValueError(_broken(component, what))


def _broken(component: str, what: str) -> str:
    return (
        f"{component}: {what} came out as NaN or infinite: its weights hold such values, or {what} exceed what their "
        "dtype can hold"
    )


class CheckedSampler:
    """Wraps a sampler and checks its logits and choices, so that an error names the component.

    Args:
        sampler: Maps logits (V,) to an id.
        component: Name of the component that produces the logits, for messages.
    """

    def __init__(self, sampler: Callable[[Tensor], int], component: str):
        self.sampler, self.component = sampler, component

    def __call__(self, logits: Tensor) -> int:
        """Logits (V,) -> one id.

        Raises:
            ValueError: No logit is finite, or one is NaN; or the sampler didn't return an id.
        """
        if not math.isfinite(float(logits.max())):  # the maximum is NaN if any is, and -inf if every id is ruled out
            raise ValueError(_broken(self.component, "logits"))
        token = self.sampler(logits)
        if not isinstance(token, Integral) or not 0 <= token < len(logits):
            raise ValueError(f"{self.component}: its sampler drew {token!r}; allowed: 0 to {len(logits) - 1}")
        return int(token)

    def forget(self) -> None:
        """Clear the history of the repetition penalty, if the sampler has one."""
        if isinstance(self.sampler, Sampler):
            self.sampler.forget()


NEUTRAL = {
    "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beams": 1, "penalty_alpha": None,
    "no_repeat_ngram_size": 0, "min_new_tokens": None, "bad_words_ids": None, "suppress_tokens": None,
    "forced_eos_token_id": None, "guidance_scale": None, "top_h": None,
}  # fmt: skip
"""Options of transformers' generation that are not supported here, with the values that have no effect."""


@dataclass(frozen=True)
class Generation:
    """A model's own generation settings, with the keys and defaults of transformers' `generation_config.json`.

    Args:
        do_sample: Sample; otherwise take the most likely token.
        temperature: See `Sampler`.
        top_k: See `Sampler`.
        top_p: See `Sampler`.
        repetition_penalty: See `Sampler`.
        max_new_tokens: Maximum number of tokens; None leaves it to the caller.
        eos_token_ids: Tokens that end the generation; empty leaves them to the caller.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> Generation:
        """Read a `generation_config.json`; unsupported keys are ignored, with a warning if they would have an effect.

        Args:
            config: Content of the file.
            source: Name of the file, for messages.

        Raises:
            ValueError: A value is invalid.
        """
        for key, neutral in NEUTRAL.items():
            if config.get(key) not in (None, neutral):
                warnings.warn(f"{source}: {key} = {config[key]!r} is not supported and has no effect", stacklevel=2)
        kinds: dict[str, tuple[type, ...]] = {
            "do_sample": (bool,), "temperature": (int, float), "top_k": (int,), "top_p": (int, float),
            "repetition_penalty": (int, float), "max_new_tokens": (int,),
        }  # fmt: skip
        given = {key: config[key] for key in kinds if config.get(key) is not None}
        for key, value in given.items():
            if not isinstance(value, kinds[key]) or (isinstance(value, bool) and key != "do_sample"):
                raise ValueError(f"{source}: {key} must be {kinds[key][-1].__name__}; got {value!r}")
        eos = config.get("eos_token_id")
        eos_ids = [] if eos is None else eos if isinstance(eos, list | tuple) else [eos]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in eos_ids):
            raise ValueError(f"{source}: eos_token_id must be a token id or a list of them; got {eos!r}")
        if given.get("max_new_tokens", 1) < 1:
            raise ValueError(f"{source}: max_new_tokens must be at least 1; got {given['max_new_tokens']}")
        generation = cls(**given, eos_token_ids=tuple(eos_ids))
        try:
            generation.sampler()
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        return generation

    def sampler(self, greedy: bool = False) -> Sampler:
        """A sampler with these settings; the repetition penalty also applies to greedy choices."""
        if greedy or not self.do_sample:
            return Sampler(temperature=0.0, repetition_penalty=self.repetition_penalty)
        return Sampler(self.temperature, self.top_k, self.top_p, repetition_penalty=self.repetition_penalty)

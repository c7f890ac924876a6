"""Drawing one token from logits, for the LLM and the speech decoder alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Sampler:
    """Greedy, or by temperature, the k most likely and the nucleus p.

    Args:
        temperature: 0 takes the most likely token.
        top_k: draw among the k most likely; 0 for all.
        top_p: draw among the most likely that make up this share of the probability.
        repetition_window: how many of the last drawn tokens `repetition_penalty` looks at; 0 for all.
        repetition_penalty: divides the probability odds of tokens drawn within the window; 1 changes nothing.
        seed: of the draw; None takes torch's global generator.
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
        for name, value, low, high in (("temperature", self.temperature, 0.0, 100.0), ("top_p", self.top_p, 0.0, 1.0)):
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}; got {value}")
        for name, count in (("top_k", self.top_k), ("repetition_window", self.repetition_window)):
            if count < 0:
                raise ValueError(f"{name} must be 0 or more; got {count}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0; got {self.repetition_penalty}")

    def __call__(self, logits: Tensor) -> int:
        """(V,) -> one id."""
        logits = logits.float()
        if self.repetition_penalty != 1.0 and self.drawn:
            recent = torch.tensor(self.drawn[-self.repetition_window :], device=logits.device).unique()
            values = logits[recent]
            scaled = torch.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
            logits = logits.index_copy(0, recent, scaled)
        token = int(logits.argmax()) if self.temperature == 0 else self._draw(logits / self.temperature)
        self.drawn.append(token)
        return token

    def _draw(self, logits: Tensor) -> int:
        if self.top_k:
            threshold = logits.topk(min(self.top_k, len(logits))).values[-1]
            logits = logits.masked_fill(logits < threshold, float("-inf"))
        if self.top_p < 1.0:
            ordered, order = logits.sort(descending=True)
            beyond = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= self.top_p
            beyond[0] = False  # the most likely always stays, however small the nucleus
            logits = logits.index_fill(0, order[beyond], float("-inf"))
        if self.generator is None and self.seed is not None:
            self.generator = torch.Generator(logits.device).manual_seed(self.seed)
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator))

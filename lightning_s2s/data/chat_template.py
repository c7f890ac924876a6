"""A tokenizer's chat template, rendered with placeholders for the contents, so that no content can act as markup.

Templates are untrusted programs, see `lightning_s2s.data.template_renderer`. This file imports neither torch nor
transformers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_s2s.data.template_renderer import TemplateBombError, is_plain, render, render_apart

log = logging.getLogger(__name__)

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Private-use characters, which don't occur in texts.
_MARK = "\ue000{}\ue001"
MARK = re.compile("\ue000(\\d+)\ue001")
"""Placeholder of a content; its group is the message's index."""

PROBES = (("system", "user", "assistant", "user", "assistant"), ("user", "assistant", "user", "assistant"))

Key = tuple[bool, tuple[str, ...]]
"""Whether the generation prompt is added, and the roles."""


class ChatTemplate:
    """Any chat template of transformers, with thinking off.

    The variables `enable_thinking` and `thinking` are false. If the template still opens `<think>`, an empty thought is
    written. A tokenizer without a usable template gets ChatML, with a warning.

    Args:
        tokenizer: Tokenizer of transformers; its `chat_template` may be replaced.

    Raises:
        ValueError: The template takes more time or memory than rendering dialogues can need.

    Attributes:
        turn_end: The special token that closes the assistant's turn.
        has_system: Whether a system message may come first; False if the template refuses or moves it.
        uses: Those of `<|im_start|>` and `<|im_end|>` that the template writes.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.turn_end, self.has_system = IM_END, True
        self.uses: tuple[str, ...] = (IM_START, IM_END)
        self._rendered: dict[Key, str] = {}
        self._raw: dict[Key, tuple[str | None, str | None]] = {}
        if problem := self._study():
            log.warning("%s: using ChatML instead", problem)
            tokenizer.chat_template = CHATML_TEMPLATE
            self._rendered.clear()
            self._raw.clear()
            self._study()

    def _study(self) -> str | None:
        """Find out how the template closes a turn and whether it takes a system message; returns a problem, or None."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "the tokenizer has no chat template"
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        problem = None
        for roles in PROBES:
            try:
                rendered = self.render(roles)
            except TemplateBombError:
                raise
            except ValueError as error:
                problem = str(error)
                continue
            after = MARK.split(rendered)[-1].lstrip()
            ends = [token for token in {*added, IM_END} if after.startswith(token)]
            if not ends:
                return f"the chat template closes the assistant's turn with {after!r}, which is no special token"
            self.turn_end, self.has_system = max(ends, key=len), roles[0] == "system"
            self.uses = tuple(token for token in (IM_START, IM_END) if token in rendered)
            return None
        return problem

    def render(self, roles: Sequence[str], add_generation_prompt: bool = False) -> str:
        """Render messages of these roles, with placeholders 0, 1, ... for their contents.

        Raises:
            ValueError: The template refuses these roles, or leaves out, repeats or moves messages.
        """
        key = (add_generation_prompt, tuple(roles))
        if key not in self._rendered:
            rendered, problem = self._render(key)
            if rendered is None:
                raise ValueError(f"chat template: refuses the roles {', '.join(roles)} ({problem})")
            if MARK.findall(rendered) != [str(i) for i in range(len(roles))]:
                what = "leaves out, repeats or moves messages of"
                raise ValueError(f"chat template: {what} the roles {', '.join(roles)}")
            self._rendered[key] = _without_thinking(rendered) if add_generation_prompt else rendered
        return self._rendered[key]

    def _render(self, key: Key) -> tuple[str | None, str | None]:
        """The text, or the template's objection to these roles.

        With placeholders, dialogues of the same roles render alike. Roles that may come next are rendered along.
        """
        if key not in self._raw:
            template, variables = str(self.tokenizer.get_chat_template()), variables_of(self.tokenizer)
            plain = is_plain(template)
            keys = [key] if plain else list(dict.fromkeys([key, *_likely(key[1])]))
            dialogues = [
                ([{"role": role, "content": _MARK.format(i)} for i, role in enumerate(roles)], add_generation_prompt)
                for add_generation_prompt, roles in keys
            ]
            run = render if plain else render_apart
            self._raw.update(zip(keys, run(template, variables, dialogues), strict=True))
        return self._raw[key]

    def render_with_answer(self, roles: Sequence[str]) -> str:
        """`render` of a dialogue that ends with the assistant, whose last turn follows the generation prompt.

        The prompt may differ from earlier turns (Qwen3's empty thought); so training matches inference.
        """
        last = _MARK.format(len(roles) - 1)
        prompt = self.render(roles[:-1], add_generation_prompt=True)
        return prompt + last + self.render(roles).rpartition(last)[2]


def variables_of(tokenizer: Any) -> dict[str, Any]:
    """Variables of a template beside the messages: thinking is off, and there are no tools."""
    special = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return {**special, "tools": None, "documents": None, "enable_thinking": False, "thinking": False}


def _likely(roles: Sequence[str]) -> Iterator[Key]:
    """Roles that may be rendered next: beginnings of this dialogue, and continuations by a few turns."""
    start = roles[:1] if roles[0] == "system" else roles[:0]
    turns = ("user", "assistant") * max(6, len(roles))
    for length in range(1, len(turns) // 2 * 2 + 1):
        alternating = (*start, *turns[:length])
        yield False, alternating
        if alternating[-1] == "user":
            yield True, alternating


def _without_thinking(prompt: str) -> str:
    """The prompt, with an empty thought if it ends in an open one, in Qwen3's format."""
    start = MARK.split(prompt)[-1]
    if start.count("<think>") <= start.count("</think>"):
        return prompt
    return prompt.rstrip("\n") + "\n\n</think>\n\n"

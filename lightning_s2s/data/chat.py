"""Dialogues -> token ids, labels and spoken segments, through the LLM's own chat template.

S positions. The user's audio is one position with the id `AUDIO_PLACEHOLDER`, which the model replaces by the adapter's
output. This file imports neither torch nor, before a folder is read, transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s2s.data.batch import AUDIO_PLACEHOLDER, IGNORE_INDEX, NO_SEGMENT
from lightning_s2s.data.chat_template import IM_END, IM_START, MARK, ChatTemplate

AUDIO_START, AUDIO_END = "<|im_audio_start|>", "<|im_audio_end|>"
TTS_START, TTS_END = "<|im_tts_start|>", "<|im_tts_end|>"
SPECIAL_TOKENS = (IM_START, IM_END, AUDIO_START, AUDIO_END, TTS_START, TTS_END)
"""All tokens that this project adds to a tokenizer; the first two only where the chat template writes them."""

SYSTEM_PROMPT = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class EncodedDialogue:
    """One dialogue as the LLM reads it; three lists of the same length S.

    Attributes:
        input_ids: token ids, with `AUDIO_PLACEHOLDER` for each audio of the user.
        labels: the id itself where the assistant speaks (with the turn's closing token), `IGNORE_INDEX` elsewhere.
        segments: i over `<|im_tts_start|>`, text and `<|im_tts_end|>` of the i-th assistant turn with units,
            `NO_SEGMENT` elsewhere.
    """

    input_ids: list[int]
    labels: list[int]
    segments: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)


def content_items(content: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A message's content as a list of items; a bare string is one text."""
    return [{"text": content}] if isinstance(content, str) else list(content)


def is_spoken(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message is said aloud: an item has `speech_units` or `speak: true`."""
    return message["role"] == "assistant" and any(
        item.get("speech_units") or item.get("speak") for item in content_items(message["content"])
    )


def has_units(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message comes with the speech units of its text."""
    return message["role"] == "assistant" and any(
        item.get("speech_units") for item in content_items(message["content"])
    )


class ChatTokenizer:
    """A Hugging Face tokenizer that knows spoken dialogues, after OpenS2S (arXiv:2507.05177, Sec. 3).

    The assistant's last turn follows the template's generation prompt with thinking off, exactly as in `encode_prompt`,
    so that training and answering see the same positions; earlier turns look as the template renders history. Any chat
    template will do, see `ChatTemplate`. Where it takes no system message, one of the dialogue is put in front of the
    first user's text, and `system_prompt` is left out.

    Args:
        tokenizer: any transformers tokenizer.
        system_prompt: put in front of dialogues that have no system message; None leaves that to the template.
    """

    def __init__(self, tokenizer: Any, system_prompt: str | None = SYSTEM_PROMPT):
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.template = ChatTemplate(tokenizer)
        chatml = {IM_START, IM_END} - set(self.template.uses)
        self.special_tokens = tuple(token for token in SPECIAL_TOKENS if token not in chatml)
        self._ids: dict[str, int] | None = None
        self._markup = self._markup_pattern()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files with the template in use."""
        self.tokenizer.save_pretrained(str(folder))

    # --- special tokens -----------------------------------------------------------------------------------------

    def missing_special_tokens(self) -> list[str]:
        """Those of `special_tokens` that the tokenizer lacks."""
        vocabulary = self.tokenizer.get_vocab()
        return [token for token in self.special_tokens if token not in vocabulary]

    def ensure_special_tokens(self) -> int:
        """Add the special tokens that are missing and give their number; the LLM's embeddings must grow as much."""
        missing = self.missing_special_tokens()
        if missing:
            self.tokenizer.add_tokens(missing, special_tokens=True)
            self._ids = None
        return len(missing)

    def _special_id(self, token: str) -> int:
        if self._ids is None:
            missing = self.missing_special_tokens()
            if missing:
                raise ValueError(
                    f"tokenizer: lacks the special tokens {', '.join(missing)}; add them with ensure_special_tokens()"
                )
            vocabulary = self.tokenizer.get_vocab()
            self._ids = {token: vocabulary[token] for token in {*self.special_tokens, self.template.turn_end}}
        return self._ids[token]

    @property
    def turn_end_id(self) -> int:
        """Closes a turn, `<|im_end|>` in ChatML; the end of the assistant's answer."""
        return self._special_id(self.template.turn_end)

    @property
    def audio_start_id(self) -> int:
        """Stands in front of the user's audio."""
        return self._special_id(AUDIO_START)

    @property
    def audio_end_id(self) -> int:
        """Stands behind the user's audio."""
        return self._special_id(AUDIO_END)

    @property
    def tts_start_id(self) -> int:
        """Opens the assistant's spoken text."""
        return self._special_id(TTS_START)

    @property
    def tts_end_id(self) -> int:
        """Closes the assistant's spoken text."""
        return self._special_id(TTS_END)

    @property
    def pad_id(self) -> int:
        """Fills batches up; never read, since labels and lengths leave it out."""
        pad = self.tokenizer.pad_token_id
        return self.turn_end_id if pad is None else int(pad)

    def __len__(self) -> int:
        """Number of token ids, special ones included."""
        return len(self.tokenizer)

    # --- encoding ------------------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> EncodedDialogue:
        """A whole dialogue with its labels.

        Args:
            messages: `{"role": ..., "content": str or list of items}`. A user's item gives its `text`, then one
                placeholder for its `audio`, or, where an LLM learns from text alone, its `audio_text` in the same
                place. The assistant's items give their `text`, joined; with `speech_units` or `speak: true` in one
                of them the turn is spoken.

        Raises:
            ValueError: a role is unknown, the template refuses the roles in this order, a text contains a special
                token, or special tokens are missing.
        """
        messages = self._with_system(messages)
        return self._tokenize(self._render(messages), messages)

    def check(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Raise the ValueError that `encode` would raise, without the work of tokenising."""
        messages = self._with_system(messages)
        self._render(messages)
        _ = self.turn_end_id  # special tokens are there
        for message in messages:
            for item in content_items(message["content"]):
                self._plain(item.get("text") or "")
                self._plain(item.get("audio_text") or "")

    def encode_prompt(self, messages: Sequence[Mapping[str, Any]], spoken: bool) -> list[int]:
        """What the LLM reads before its answer; `spoken` ends it with `<|im_tts_start|>`.

        Raises:
            ValueError: as `encode`, or the last message is the assistant's.
        """
        messages = self._with_system(messages)
        if messages[-1]["role"] == "assistant":
            raise ValueError("messages: the last one is the assistant's; a prompt must end with the user's")
        rendered = self.template.render([message["role"] for message in messages], add_generation_prompt=True)
        ids = self._tokenize(rendered, messages).input_ids
        return [*ids, self.tts_start_id] if spoken else ids

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a bare text, without template."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens and audio placeholders dropped."""
        dropped = {self.turn_end_id, *(self._special_id(token) for token in self.special_tokens)}
        kept = [int(i) for i in ids if int(i) >= 0 and int(i) not in dropped]
        return self.tokenizer.decode(kept, skip_special_tokens=True)

    def _with_system(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        messages = list(messages)
        if not messages:
            raise ValueError("messages: is empty; at least one message is needed")
        for message in messages:
            if message["role"] not in ROLES:
                raise ValueError(f"role: got {message['role']!r}; allowed: {', '.join(ROLES)}")
        system = messages[0]["role"] == "system"
        if self.template.has_system:
            if system or self.system_prompt is None:
                return messages
            return [{"role": "system", "content": self.system_prompt}, *messages]
        if not system:
            return messages
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
        if first is None:
            raise ValueError("messages: the chat template takes no system message, and no user's message can hold it")
        instruction = "".join(item.get("text") or "" for item in content_items(messages[0]["content"]))
        content = [{"text": f"{instruction}\n\n"}, *content_items(messages[first]["content"])]
        return [*messages[1:first], {**messages[first], "content": content}, *messages[first + 1 :]]

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        roles = [message["role"] for message in messages]
        if roles[-1] == "assistant":
            return self.template.render_with_answer(roles)
        return self.template.render(roles)

    def _markup_pattern(self) -> re.Pattern[str]:
        """What no text may contain: it would be read as markup."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        tokens = sorted({*SPECIAL_TOKENS, *added, self.template.turn_end}, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, tokens), MARK.pattern]))

    def _plain(self, text: str) -> str:
        """`text`, refused when it would be read as markup."""
        if found := self._markup.search(text):
            raise ValueError(f"text: contains the special token {found[0]!r}, which only the chat template may write")
        return text

    def _tokenize(self, rendered: str, messages: Sequence[Mapping[str, Any]]) -> EncodedDialogue:
        """Fill the contents into the rendered template, token by token."""
        ids: list[int] = []
        labels: list[int] = []
        segments: list[int] = []
        pending = ""  # the user's text is tokenised together with the markup around it, as in the published code
        num_segments = 0

        def put(new_ids: list[int], learn: bool, segment: int = NO_SEGMENT) -> None:
            ids.extend(new_ids)
            labels.extend(new_ids if learn else [IGNORE_INDEX] * len(new_ids))
            segments.extend([segment] * len(new_ids))

        pieces = MARK.split(rendered)
        pending = pieces[0]
        for index, after in zip(pieces[1::2], pieces[2::2], strict=True):
            message = messages[int(index)]
            items = content_items(message["content"])
            if message["role"] != "assistant":
                for item in items:
                    pending += self._plain(item.get("text") or "")
                    if item.get("audio") and message["role"] == "user":
                        put(self.encode_text(pending + AUDIO_START), learn=False)
                        put([AUDIO_PLACEHOLDER], learn=False)
                        pending = AUDIO_END
                    elif item.get("audio_text"):
                        pending += AUDIO_START + self._plain(item["audio_text"]) + AUDIO_END
                pending += after
                continue
            put(self.encode_text(pending), learn=False)
            text = self.encode_text("".join(self._plain(item.get("text") or "") for item in items))
            if is_spoken(message):
                segment = num_segments if has_units(message) else NO_SEGMENT
                num_segments += has_units(message)
                put([self.tts_start_id], learn=False, segment=segment)
                put([*text, self.tts_end_id], learn=True, segment=segment)
            else:
                put(text, learn=True)
            put([self.turn_end_id], learn=True)
            # Llama-2's template, for one, has a space in front of it.
            pending = after.lstrip().removeprefix(self.template.turn_end)
        put(self.encode_text(pending), learn=False)
        return EncodedDialogue(ids, labels, segments)

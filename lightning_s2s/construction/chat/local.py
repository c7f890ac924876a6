"""A local causal LM, by transformers; its answers follow the schema by construction."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from lightning_s2s.construction.chat.base import ChatModel, ChatReply, ChatRequest, json_instruction
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.data.chat_template import variables_of
from lightning_s2s.data.template_renderer import render_apart
from lightning_s2s.support.ranges import Count, Range, Temperature, checked, device_of


@checked
@dataclass
class LocalChat(ChatModel):
    """A causal LM with a chat template, thinking off. Each token is drawn from those that the schema allows.

    The constraint is of the package llguidance. A batch is drawn by its first request's seed: the same requests get the
    same answers on the same machine.

    Args:
        checkpoint: Hub id or folder of the model.
        temperature: Temperature of the sampling; 0 takes the likeliest token.
        top_p: Share of the probability mass that is sampled from.
        repetition_penalty: Values above 1 make words rarer that are there already; small models need it.
        max_tokens: Number of tokens of one answer at most.
        batch_size: Number of dialogues in a batch.
        device: Device on which the LLM runs: cpu, cuda, ...
    """

    checkpoint: str
    temperature: Temperature = 0.8
    top_p: Annotated[float, Range(0, 1, above=True)] = 0.95
    repetition_penalty: Annotated[float, Range(0, 100, above=True)] = 1.0
    max_tokens: Count = 200
    batch_size: Count = 8
    device: str = "cpu"

    @property
    def identity(self) -> str:
        settings = [self.checkpoint, self.temperature, self.top_p, self.repetition_penalty, self.max_tokens]
        return f"local {json.dumps([*settings, self.batch_size])}"

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | TransientError]:
        import torch

        tokenizer, model, grammar = self._model
        prompts = [self._prompt(request) for request in requests]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(requests[0].seed)
            output = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=self.max_tokens,
                repetition_penalty=self.repetition_penalty,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                logits_processor=[SchemaLogits(grammar, [request.schema for request in requests])],
                **sampling,
            )
        replies: list[ChatReply | TransientError] = []
        inputs = batch.attention_mask.sum(1).tolist()
        for number, ids in enumerate(output[:, batch.input_ids.shape[1] :].tolist()):
            ended = tokenizer.eos_token_id in ids
            length = ids.index(tokenizer.eos_token_id) + 1 if ended else len(ids)
            text = tokenizer.decode(ids[:length], skip_special_tokens=True)
            replies.append(ChatReply(text, not ended, inputs[number], length))
        return replies

    def _prompt(self, request: ChatRequest) -> str:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": f"{request.prompt}\n\n{json_instruction(request.schema)}"})
        tokenizer = self._model[0]
        ((text, problem),) = render_apart(tokenizer.get_chat_template(), variables_of(tokenizer), [(messages, True)])
        if text is None:
            raise ValueError(f"{self.checkpoint}: chat template: refuses the prompt ({problem})")
        return text

    @functools.cached_property
    def _model(self) -> tuple[Any, Any, Any]:
        """Tokenizer, network, and the tokenizer as llguidance reads it."""
        import llguidance.hf

        from lightning_s2s.components.pretrained import load_model, load_pretrained

        tokenizer = load_pretrained("AutoTokenizer", self.checkpoint, padding_side="left")
        if not tokenizer.chat_template:
            raise ValueError(f"{self.checkpoint}: its tokenizer has no chat template, so it can't be asked")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = load_model("AutoModelForCausalLM", self.checkpoint, dtype="auto").eval().to(device_of(self))
        vocabulary = model.config.get_text_config().vocab_size
        return tokenizer, model, llguidance.hf.from_tokenizer(tokenizer, vocabulary)


class SchemaLogits:
    """A logits processor of transformers: what the schema forbids next gets no probability.

    Args:
        tokenizer: Tokenizer of llguidance.
        schemas: JSON schema of each answer in the batch.
    """

    def __init__(self, tokenizer: Any, schemas: Sequence[dict[str, Any]]):
        import llguidance

        self.matchers = [
            llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(compact(schema)))
            for schema in schemas
        ]
        self.started = False

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(B, S) ids so far, (B, V) scores of the next -> (B, V)."""
        import llguidance.torch

        if self.started:
            for matcher, token in zip(self.matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        self.started = True
        mask = llguidance.torch.allocate_token_bitmask(len(self.matchers), scores.shape[-1])
        for number, matcher in enumerate(self.matchers):
            llguidance.torch.fill_next_token_bitmask(matcher, mask, number)
        scores = scores.float()
        llguidance.torch.apply_token_bitmask_inplace(scores, mask.to(scores.device))
        return scores


def compact(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the request for JSON in one line: blanks between keys would be places to get lost in."""
    return schema | {"x-guidance": {"whitespace_flexible": False}}

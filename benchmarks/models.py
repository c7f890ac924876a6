"""The models that the benchmarks of streaming run: built here, without a download."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_s2s.components.adapters.conv import ConvAdapter
from lightning_s2s.components.encoders.mel import MelEncoder
from lightning_s2s.components.llms.causal import CausalLanguageModel
from lightning_s2s.components.speech_decoders.interleaved import InterleavedSpeechDecoder
from lightning_s2s.components.vocoders.pocket import PocketVocoder
from lightning_s2s.generation.sampling import Sampler
from lightning_s2s.model.speech_to_speech import SpeechToSpeechModel
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import AudioChunk, Reply
from lightning_s2s.streaming.session import StreamingSession

SAMPLE_RATE = 16_000
DECODER = {
    "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 704, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
"""Of `experiments/tiny`."""
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
"""The sizes of SmolLM2-135M."""
SIZES = ("tiny", "smollm2")


def build_model(size: str, num_tokens: int, device: str) -> SpeechToSpeechModel:
    """A model that speaks `4:12`, three units for each of `num_tokens` text tokens.

    Args:
        size: `tiny`, the parts of `experiments/tiny` with an untrained adapter, or `smollm2`, the same with an LLM of
            that size and random weights.
        num_tokens: of text in a reply.
        device: to run on.
    """
    torch.manual_seed(0)
    folder = "experiments/tiny/language_model"
    llm = CausalLanguageModel(folder) if size == "tiny" else CausalLanguageModel(config=SMOLLM2, tokenizer=folder)
    decoder = InterleavedSpeechDecoder(
        "4:12", DECODER, "experiments/tiny/speech_decoder" if size == "tiny" else None, max_units=3 * num_tokens
    )
    return (
        SpeechToSpeechModel(
            llm,
            MelEncoder(checkpoint="experiments/tiny/encoder"),
            ConvAdapter((5,), 256),
            decoder,
            PocketVocoder(checkpoint="experiments/tiny/pocket"),
        )
        .to(device)
        .eval()
    )


def make_question(duration_sec: float = 3.0, seed: int = 0) -> Tensor:
    """(T,) noise at `SAMPLE_RATE`."""
    return 0.1 * torch.randn(int(duration_sec * SAMPLE_RATE), generator=torch.Generator().manual_seed(seed))


class Endless(Sampler):
    """Greedy without the ids that would end a reply, so that all replies are of the same length."""

    def __init__(self, ends: list[int]):
        super().__init__(temperature=0.0)
        self.ends = ends

    def __call__(self, logits: Tensor) -> int:
        logits = logits.clone()
        logits[self.ends] = -torch.inf
        return int(logits.argmax())


def text_ends(model: SpeechToSpeechModel) -> list[int]:
    """Ids that would end the text."""
    tokenizer = model.llm.tokenizer
    return sorted({tokenizer.turn_end_id, tokenizer.tokenizer.eos_token_id} - {None})


def start(engine: StreamingEngine, question: Tensor, num_tokens: int) -> StreamingSession:
    """A session whose reply has so many text tokens and three units for each."""
    model = engine.model
    session = StreamingSession(
        model,
        SAMPLE_RATE,
        engine=engine,
        max_text_tokens=num_tokens,
        unit_sampler=Endless(model.speech_decoder.eos_ids),
    )
    session.text_sampler = Endless(text_ends(model))
    session.push(question)
    return session


def answer(engine: StreamingEngine, question: Tensor, num_tokens: int) -> tuple[Reply, list[AudioChunk]]:
    """Run a session to its end."""
    *events, done = start(engine, question, num_tokens).finish()
    return done.reply, [event for event in events if isinstance(event, AudioChunk)]

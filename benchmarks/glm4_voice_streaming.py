"""How far streamed speech of `glm4_voice` is from one-shot speech: `python benchmarks/glm4_voice_streaming.py DECODER`.

The published one-shot synthesis lets every frame see the whole reply, so a stream can't equal it. The two differ in
what a frame sees (the window) and in the noise that the flow starts from, which the published code draws for a whole
reply at once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_s2s.components.vocoders.glm4_voice import Glm4VoiceVocoder
from lightning_s2s.components.vocoders.glm4_voice.streaming import frame_noise, stream_mel

OTHER_SEED = 1


@dataclass(frozen=True)
class StreamDifference:
    """Mean absolute differences of log-mel (natural logarithm).

    Attributes:
        streamed: streamed and one-shot mel.
        window: the same with the stream's noise in both: what the bounded window alone does.
        noise: one-shot mel from two seeds, to compare with: differences that mean nothing.
    """

    streamed: float
    window: float
    noise: float


@torch.inference_mode()
def stream_difference(vocoder: Glm4VoiceVocoder, units: Tensor) -> StreamDifference:
    """Speak units (B, U) in both ways and compare the mel."""
    flow, state = vocoder.flow, vocoder.start_stream()
    streamed = stream_mel(vocoder, units, state, last=True)
    noise = frame_noise(vocoder.start_stream().generator, flow.config.output_size, streamed.shape[-1])
    options = {"num_steps": vocoder.num_steps, "guidance": vocoder.guidance}
    one_shot = flow(units, seed=vocoder.seed, **options)

    def distance(first: Tensor, second: Tensor) -> float:
        return float((first - second).abs().mean())

    return StreamDifference(
        streamed=distance(streamed, one_shot),
        window=distance(streamed, flow(units, noise=noise, **options)),
        noise=distance(flow(units, seed=vocoder.seed + OTHER_SEED, **options), one_shot),
    )


def main() -> None:
    """Print a table over chunk and context sizes, for the units of a manifest or for random ones."""
    parser = argparse.ArgumentParser(description="How far streamed speech is from one-shot speech.")
    parser.add_argument("decoder", help="folder with flow.pt and hift.pt")
    parser.add_argument("--manifest", help="JSONL whose speech_units are spoken; random units without one")
    parser.add_argument("--limit", type=int, default=8, help="replies to speak")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print("chunk_units  left_context_units  streamed  window  noise")
    for chunk, context in ((10, 10), (10, 20), (10, 30), (20, 30), (20, 60)):
        vocoder = Glm4VoiceVocoder(options.decoder, chunk_units=chunk, left_context_units=context)
        vocoder = vocoder.eval().to(options.device)
        replies = _replies(vocoder, options.manifest, options.limit)
        found = [stream_difference(vocoder, units.to(options.device)) for units in replies]
        means = [sum(getattr(one, name) for one in found) / len(found) for name in ("streamed", "window", "noise")]
        print(f"{chunk:>11}  {context:>18}  {means[0]:>8.3f}  {means[1]:>6.3f}  {means[2]:>5.3f}")


def _replies(vocoder: Glm4VoiceVocoder, manifest: str | None, limit: int) -> list[Tensor]:
    """(1, U) each."""
    if manifest is None:
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(0, vocoder.num_units, (1, 125), generator=generator) for _ in range(limit)]
    from lightning_s2s.data.manifest import message_units, read_manifest

    messages = (message for row in read_manifest(manifest) for message in row["messages"])
    units = (message_units(message, vocoder.num_units) for message in messages)
    spoken = [torch.tensor([reply]) for reply in units if reply][:limit]
    if not spoken:
        raise ValueError(f"{manifest}: has no speech_units")
    return spoken


if __name__ == "__main__":
    main()

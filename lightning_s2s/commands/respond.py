"""`lightning-s2s respond`: one spoken question in, text and speech out, with the time of every event."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_s2s.checkpoints.sources import find_model, open_model
from lightning_s2s.commands.messages import CommandError
from lightning_s2s.components.contracts import Vocoder
from lightning_s2s.data.audio import load_audio
from lightning_s2s.streaming.engine import StreamingEngine
from lightning_s2s.streaming.events import Reply
from lightning_s2s.streaming.session import stream_reply
from lightning_s2s.support.files import replacing, write_text
from lightning_s2s.support.ranges import Device, check_device
from lightning_s2s.support.wording import unknown_suffix

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")


@dataclass(frozen=True)
class TimedEvent:
    """An event of the reply: its name and the seconds since the question's end."""

    event: str
    time_sec: float


def respond(
    model: Path,
    question: str,
    *,
    out: Path | None = None,
    json_: Path | None = None,
    greedy: bool = False,
    vocoder: Vocoder | None = None,
    no_audio: bool = False,
    compile: bool = False,
    device: Device = "auto",
    seed: int | None = None,
    trust_sources: bool = False,
) -> None:
    """Answer one spoken question in text and speech, and say when every part of the reply came.

    Args:
        model: Model folder (this project's or OpenS2S's), folder of a run, or .ckpt file.
        question: Audio of the question: wav, flac, ogg, opus or mp3.
        out: Write the spoken reply here (.wav, .flac or .ogg).
        json_: Write text, ids and the times of all events here.
        greedy: Always take the most likely token; by default tokens are drawn.
        vocoder: Make the sound with this vocoder instead of the model's.
        no_audio: Make no sound; `out` is not written.
        compile: Compile the model first, which takes a minute or two, to answer faster.
        device: Where the model runs: cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.
        seed: Seed of the draws; without it every run differs.
        trust_sources: Also load what the model names outside of itself (hub ids, URLs, files), and run code where it
            says so.

    Raises:
        CommandError: A mistake in the options.
        ValueError: There is no such model, the question's audio can't be used, or the model can't answer speech.
    """
    _check_files(model, question, out, json_)
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise CommandError(f"--seed: got {seed}; allowed: whole numbers of 64 bits")
    place = check_device(device, "--device")
    loaded = open_model(model, trust_sources).to(place)
    if vocoder is not None and not no_audio:
        loaded.attach_vocoder(vocoder)
    if not loaded.can_answer:
        raise ValueError(f"{model}: this model has no encoder, it can't hear a question")
    vocode = not no_audio and loaded.vocoder is not None
    if loaded.speech_decoder is not None and not vocode and not no_audio:
        raise ValueError(f"{model}: this model has no vocoder; give one with --vocoder, or --no_audio")
    sample_rate = loaded.require_encoder()[0].sample_rate
    waveform = load_audio(question, ".", sample_rate)

    engine = StreamingEngine(loaded, compile=compile)
    warm_up(engine, sample_rate, vocode)
    events: list[TimedEvent] = []
    reply = None
    start = time.perf_counter()
    for event in stream_reply(loaded, waveform, sample_rate, greedy=greedy, vocode=vocode, seed=seed, engine=engine):
        events.append(TimedEvent(type(event).__name__, event.time_sec - start))
        reply = getattr(event, "reply", reply)
    assert reply is not None, "a stream ends with Done"

    if json_ is not None:
        write_text(json_, json.dumps(reply_as_json(reply, events), indent=2, ensure_ascii=False) + "\n")
    if out is not None:
        _write_audio(out, reply)
    print(reply.text)
    print(summary(reply))


def warm_up(engine: StreamingEngine, sample_rate: int, vocode: bool) -> None:
    """Compile, and answer half a second of silence up to the first sound, so that late imports aren't measured."""
    engine.warm_up()
    silence = [0.0] * (sample_rate // 2)
    for event in stream_reply(engine.model, silence, sample_rate, vocode=vocode, max_text_tokens=2, engine=engine):
        if type(event).__name__ == ("AudioChunk" if vocode else "Units"):
            break


def _check_files(model: Path, question: str, out: Path | None, json_: Path | None) -> None:
    """Find mistakes before the model is loaded."""
    find_model(model)
    if not Path(question).is_file() and not Path(question.rsplit(":", 2)[0]).is_file():
        raise ValueError(f"{question}: no such audio file")
    if out is not None and out.suffix.lower() not in AUDIO_SUFFIXES:
        raise CommandError(unknown_suffix("--out", out, AUDIO_SUFFIXES))
    for option, path in (("--out", out), ("--json", json_)):
        if path is not None and not path.resolve().parent.is_dir():
            raise CommandError(f"{option} {path}: the folder {path.parent} does not exist")


def reply_as_json(reply: Reply, events: list[TimedEvent]) -> dict[str, Any]:
    """The content of `--json`; all times are seconds since the question's end."""
    return {
        "text": reply.text,
        "text_ids": list(reply.text_ids),
        "ended_by": reply.ended_by,
        "unit_ids": list(reply.unit_ids),
        "events": [{"event": event.event, "time_sec": round(event.time_sec, 6)} for event in events],
        "marks": {mark: round(seconds, 6) for mark, seconds in reply.marks.items()},
        "audio_sec": reply.audio_sec,
        "real_time_factor": reply.real_time_factor,
    }


def summary(reply: Reply) -> str:
    """One line that says when the first text and the first sound came."""
    parts = [
        f"{mark.replace('_', ' ')} {reply.marks[mark]:.3f} s"
        for mark in ("first_text_token", "first_audio")
        if mark in reply.marks
    ]
    if reply.ended_by != "end":
        parts.append(f"cut off by {reply.ended_by}")
    if reply.real_time_factor is not None:
        parts.append(f"{reply.audio_sec:.2f} s of audio, real-time factor {reply.real_time_factor:.2f}")
    return f"[{'; '.join(parts) or 'no reply'}]"


def _write_audio(path: Path, reply: Reply) -> None:
    import soundfile

    if reply.waveform is None:
        print(f"{path} is not written: the reply has no sound")
        return
    samples = reply.waveform.clamp(-1, 1).cpu().numpy()
    with replacing(path) as temporary:
        soundfile.write(temporary, samples, reply.sample_rate)

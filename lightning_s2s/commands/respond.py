"""`lightning-s2s respond`: one spoken question in, text and speech out, with the time of every event."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s2s.commands.devices import DEVICE_HELP, find_device
from lightning_s2s.commands.messages import CommandError, OneLineParser, a_path
from lightning_s2s.commands.model_options import add_trust_option, open_vocoder, take_vocoder_options
from lightning_s2s.support.files import replacing, write_text
from lightning_s2s.support.wording import unknown_suffix

if TYPE_CHECKING:
    import argparse

    from lightning_s2s.streaming.engine import StreamingEngine
    from lightning_s2s.streaming.events import Reply

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")


@dataclass(frozen=True)
class TimedEvent:
    """An event of the reply: its name and the seconds since the question's end."""

    event: str
    time_sec: float


def build_parser() -> argparse.ArgumentParser:
    """The options of `lightning-s2s respond`."""
    parser = OneLineParser(prog="lightning-s2s respond", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="model folder (OpenS2S's, too), folder of a run, or .ckpt file")
    parser.add_argument("question", help="audio of the question: wav, flac, ogg, opus or mp3")
    parser.add_argument("--out", type=a_path, help=f"write the spoken reply here ({', '.join(AUDIO_SUFFIXES)})")
    parser.add_argument("--json", type=a_path, help="write text, ids and event times here")
    parser.add_argument("--greedy", action="store_true", help="always take the most likely token; the default draws")
    parser.add_argument(
        "--vocoder",
        metavar="NAME|FOLDER|YAML",
        help="sound from this vocoder: a name, with --vocoder.OPTION VALUE, a folder of GLM-4-Voice's decoder, or YAML",
    )
    parser.add_argument("--no-audio", action="store_true", help="make no sound; --out is not written")
    parser.add_argument(
        "--compile", action="store_true", help="compile the model first, a minute or two, to answer faster"
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--seed", type=int, help="of what is drawn; without it every run differs")
    add_trust_option(parser)
    return parser


def run(name: str, arguments: list[str]) -> int:
    """Answer the question after a warm-up, print the reply's text and latency, write the files that were asked for.

    Raises:
        CommandError: a mistake in the options.
        ValueError: no such model, the question's audio can't be used, or the model can't answer speech.
    """
    arguments, vocoder_options = take_vocoder_options(arguments)
    options = build_parser().parse_args(arguments)
    _check(options)
    from lightning_s2s.checkpoints.sources import open_model
    from lightning_s2s.data.audio import load_audio
    from lightning_s2s.streaming.engine import StreamingEngine
    from lightning_s2s.streaming.session import stream_reply

    device = find_device(options.device)
    model = open_model(options.model, options.trust_sources).to(device)
    if options.vocoder is not None and not options.no_audio:
        model.attach_vocoder(open_vocoder(options.vocoder, vocoder_options))
    if not model.can_answer:
        raise ValueError(f"{options.model}: this model has no encoder, it can't hear a question")
    vocode = not options.no_audio and model.vocoder is not None
    if model.speech_decoder is not None and not vocode and not options.no_audio:
        raise ValueError(f"{options.model}: this model has no vocoder; give one with --vocoder, or --no-audio")
    sample_rate = model.encoder.sample_rate
    waveform = load_audio(str(options.question), ".", sample_rate)

    engine = StreamingEngine(model, compile=options.compile)
    warm_up(engine, sample_rate, vocode)
    events: list[TimedEvent] = []
    reply = None
    start = time.perf_counter()
    settings = {"greedy": options.greedy, "vocode": vocode, "seed": options.seed, "engine": engine}
    for event in stream_reply(model, waveform, sample_rate, **settings):
        events.append(TimedEvent(type(event).__name__, event.time_sec - start))
        reply = getattr(event, "reply", reply)
    assert reply is not None, "a stream ends with Done"

    if options.json is not None:
        content = json.dumps(reply_as_json(reply, events), indent=2, ensure_ascii=False) + "\n"
        write_text(options.json, content)
    if options.out is not None:
        _write_audio(options.out, reply)
    print(reply.text)
    print(summary(reply))
    return 0


def warm_up(engine: StreamingEngine, sample_rate: int, vocode: bool) -> None:
    """Compile, and let half a second of silence through up to the first sound: late imports aren't the answer's."""
    from lightning_s2s.streaming.session import stream_reply

    engine.warm_up()
    silence, settings = [0.0] * (sample_rate // 2), {"vocode": vocode, "max_text_tokens": 2, "engine": engine}
    for event in stream_reply(engine.model, silence, sample_rate, **settings):
        if type(event).__name__ == ("AudioChunk" if vocode else "Units"):
            break


def _check(options: argparse.Namespace) -> None:
    """Find mistakes before the model is loaded."""
    from lightning_s2s.checkpoints.sources import find_model

    find_model(options.model)
    if not Path(options.question).is_file() and not Path(options.question.rsplit(":", 2)[0]).is_file():
        raise ValueError(f"{options.question}: no such audio file")
    if options.seed is not None and not -(2**63) <= options.seed < 2**63:
        raise CommandError(f"--seed: got {options.seed}; allowed: whole numbers of 64 bits")
    if options.out is not None and options.out.suffix.lower() not in AUDIO_SUFFIXES:
        raise CommandError(unknown_suffix("--out", options.out, AUDIO_SUFFIXES))
    for option, path in (("--out", options.out), ("--json", options.json)):
        if path is not None and not path.resolve().parent.is_dir():
            raise CommandError(f"{option} {path}: the folder {path.parent} does not exist")


def reply_as_json(reply: Reply, events: list[TimedEvent]) -> dict[str, Any]:
    """What `--json` holds; all times are seconds since the question's end."""
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
    """One line on what came when."""
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

"""`respond`: the models that it finds, what it writes and what it refuses."""

from __future__ import annotations

import json

import lightning.pytorch  # noqa: F401 (its log handler keeps the stream that it finds at import: not one of a test's)
import pytest
import soundfile
import torch

from lightning_s2s.checkpoints.sources import find_model, open_model
from lightning_s2s.generation import kv_cache
from parts.command_line import last_line

KEYS = {"text", "text_ids", "ended_by", "unit_ids", "events", "marks", "audio_sec", "real_time_factor"}


def test_a_trained_stage_answers_from_its_run_its_model_and_its_checkpoint(
    run, configuration, tmp_path, tiny_corpus, monkeypatch
):
    folder = tmp_path / "run"
    assert run("fit", "--config", configuration, "--trainer.max_steps", "1")[0] == 0
    out, record = tmp_path / "reply.wav", tmp_path / "reply.json"
    question = tiny_corpus.folder / "q00.wav"

    replies = []
    for source in (folder, folder / "model", folder / "checkpoints" / "last.ckpt", folder / "checkpoints"):
        code, printed, err = run("respond", source, question, "--out", out, "--json", record, "--greedy")
        assert code == 0, err
        replies.append(json.loads(record.read_text()))
        assert printed.splitlines()[-1].startswith("[first text token ")
    first = replies[0]
    assert set(first) == KEYS
    assert all((reply["text_ids"], reply["unit_ids"]) == (first["text_ids"], first["unit_ids"]) for reply in replies)
    times = [event["time_sec"] for event in first["events"]]
    assert times == sorted(times)
    assert first["events"][-1]["event"] == "Done"
    samples, sample_rate = soundfile.read(out)
    assert (len(samples), sample_rate) == (640 * len(first["unit_ids"]), 16_000)
    assert first["audio_sec"] == pytest.approx(len(samples) / sample_rate)

    compiled = []
    monkeypatch.setattr(kv_cache, "_compile", lambda forward: compiled.append(forward) or forward)
    assert run("respond", folder, question, "--json", record, "--greedy", "--compile")[0] == 0
    assert len(compiled) == 2 and json.loads(record.read_text())["unit_ids"] == first["unit_ids"]

    out.unlink()
    code, _, _ = run("respond", folder, question, "--out", out, "--json", record, "--no-audio", "--seed", "3")
    assert (code, out.exists()) == (0, False)
    drawn = json.loads(record.read_text())
    assert drawn["real_time_factor"] is None
    assert run("respond", folder, question, "--json", record, "--no-audio", "--seed", "3")[0] == 0
    assert json.loads(record.read_text())["text_ids"] == drawn["text_ids"]

    empty = tmp_path / "empty.wav"
    soundfile.write(empty, torch.zeros(0).numpy(), 16_000)
    code, _, err = run("respond", folder, empty)
    assert (code, last_line(err)) == (1, f"error: audio '{empty}': has no samples")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ("respond", 2, "missing: model, question; give it as an option or in a --config file"),
        ("respond missing q.wav", 1, "missing: no such model; expected a model folder, a run's folder or a .ckpt file"),
        ("respond . q.wav --out reply.mp4", 1, ".: holds no model; expected one of config.json, model/config.json, "),
        ("respond model q.wav", 1, "q.wav: no such audio file"),
        ("respond model a.wav --out reply.mp4", 2, "--out reply.mp4: the name must end in .wav or .flac or .ogg"),
        ("respond model a.wav --out no/reply.wav", 2, "--out no/reply.wav: the folder no does not exist"),
        ("respond model a.wav --json no/x.json", 2, "--json no/x.json: the folder no does not exist"),
        ("respond model a.wav --seed x", 2, "seed: got 'x'; allowed: int"),
        (
            "respond model a.wav --seed 99999999999999999999",
            2,
            "--seed: got 99999999999999999999; allowed: whole numbers",
        ),
        ("respond model a.wav --device abacus", 2, "--device must be a device of this machine (cpu"),
        ("respond model a.wav --device meta", 2, "--device must be a device of this machine (cpu"),
        ("respond model a.wav --device cuda:63", 2, "--device must be a device of this machine (cpu"),
        ("respond model a.wav", 1, "model/config.json: key 'format' must be 'lightning_s2s'"),
        ("respond last.ckpt a.wav", 1, "last.ckpt: "),
    ],
)
def test_mistakes_of_respond(run, tmp_path, monkeypatch, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    if " . " in arguments:
        (tmp_path / "last.ckpt").unlink()
        (tmp_path / "model" / "config.json").unlink()
    found, _, err = run(*arguments.split())
    assert (found, err.count("\n")) == (code, 1)
    assert err.startswith(f"error: {expected}")


def test_where_a_model_is_looked_for(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    last = checkpoints / "last.ckpt"
    last.touch()
    assert find_model(tmp_path) == last
    assert find_model(checkpoints) == last
    assert find_model(last) == last
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert find_model(tmp_path) == tmp_path / "model"
    with pytest.raises(ValueError, match="last.ckpt: "):
        open_model(last)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: " + b"[" * 5000, "levels deep"),
        (b"\xff\xfe", "not valid YAML"),
        (b"class_path: pocket\ninit_args: {levels: x}\n", "vocoder.levels: "),
        (b"class_path: os.system\n", "'os.system' is not allowed"),
        (b"[1]", "vocoder: "),
    ],
)
def test_a_vocoder_by_a_file_that_is_none(run, tmp_path, content, message):
    path = tmp_path / "vocoder.yaml"
    path.write_bytes(content)
    code, _, err = run("respond", "model", "question.wav", "--vocoder", str(path))
    assert code == 2 and message in last_line(err) and err.count("\n") == 1
    assert "levels deep" in run("respond", "model", "question.wav", "--vocoder", "a: " + "[" * 5000)[2]

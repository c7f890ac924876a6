"""Corpora as they lie on disk: small copies of their folders, with the rows that come out written by hand."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from lightning_s2s.construction import corpus_manifest
from lightning_s2s.construction.continuations import ContinuationWriter, complete_sentences, continuation_prompt
from lightning_s2s.construction.corpus_manifest import ManifestConfig, make_manifest
from lightning_s2s.construction.readers import Recording, read_corpus
from lightning_s2s.data.manifest import read_manifest


def sound(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.full(int(16_000 * seconds), 0.1, np.float32), 16_000)
    return path


def text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


@pytest.fixture
def librispeech(tmp_path) -> Path:
    root = tmp_path / "LibriSpeech"
    for split, speaker in (("train-clean-100", "19"), ("dev-clean", "84")):
        chapter = root / split / speaker / "198"
        text(
            chapter / f"{speaker}-198.trans.txt", f"{speaker}-198-0000 NORTHANGER ABBEY\n{speaker}-198-0001 THIS WORK\n"
        )
        sound(chapter / f"{speaker}-198-0000.flac")
        sound(chapter / f"{speaker}-198-0001.flac", 0.3)
    return root


@pytest.fixture
def iemocap(tmp_path) -> Path:
    session = tmp_path / "IEMOCAP" / "Session2"
    text(
        session / "dialog" / "EmoEvaluation" / "Ses02F_impro01.txt",
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        "[6.2901 - 8.2357]\tSes02F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n"
        "[10.0 - 11.4]\tSes02F_impro01_M001\texc\t[3.5, 2.5, 2.5]\n"
        "[12.0 - 13.0]\tSes02F_impro01_F001\txxx\t[3.5, 2.5, 2.5]\n",
    )
    text(
        session / "dialog" / "transcriptions" / "Ses02F_impro01.txt",
        "Ses02F_impro01_F000 [006.2901-008.2357]: Excuse me.\nSes02F_impro01_M001 [010.0-011.4]: Yeah: do it!\n",
    )
    for name in ("F000", "M001", "F001"):
        sound(session / "sentences" / "wav" / "Ses02F_impro01" / f"Ses02F_impro01_{name}.wav")
    return tmp_path / "IEMOCAP"


def facts(recordings: list[Recording]) -> list[tuple]:
    return [(r.id, r.audio.name, r.text, r.speaker, r.emotion, r.split) for r in recordings]


def test_librispeech(librispeech):
    assert facts(read_corpus("librispeech", librispeech)) == [
        ("84-198-0000", "84-198-0000.flac", "Northanger abbey", "84", "", "dev-clean"),
        ("84-198-0001", "84-198-0001.flac", "This work", "84", "", "dev-clean"),
        ("19-198-0000", "19-198-0000.flac", "Northanger abbey", "19", "", "train-clean-100"),
        ("19-198-0001", "19-198-0001.flac", "This work", "19", "", "train-clean-100"),
    ]


def test_common_voice(tmp_path):
    table = "client_id\tpath\tsentence\tup_votes\n"
    text(tmp_path / "en" / "train.tsv", f'{table}ab12\tcommon_voice_en_1.mp3\tHe said "no.\t2\n')
    text(tmp_path / "en" / "test.tsv", f"{table}cd34\tcommon_voice_en_2\tGoodbye.\t2\n")
    text(tmp_path / "en" / "other.tsv", f"{table}ef56\tcommon_voice_en_3.mp3\tNot this.\t2\n")
    found = read_corpus("common_voice", tmp_path)
    assert facts(found) == [
        ("common_voice_en_1", "common_voice_en_1.mp3", 'He said "no.', "ab12", "", "train"),
        ("common_voice_en_2", "common_voice_en_2.mp3", "Goodbye.", "cd34", "", "test"),
    ]
    assert found[0].audio.parent == tmp_path / "en" / "clips"


def test_iemocap(iemocap):
    found = read_corpus("iemocap", iemocap)
    assert facts(found) == [
        ("Ses02F_impro01_F000", "Ses02F_impro01_F000.wav", "Excuse me.", "Session2F", "neutral", "Session2"),
        ("Ses02F_impro01_M001", "Ses02F_impro01_M001.wav", "Yeah: do it!", "Session2M", "excited", "Session2"),
        ("Ses02F_impro01_F001", "Ses02F_impro01_F001.wav", "", "Session2F", "", "Session2"),
    ]
    assert all(recording.audio.is_file() for recording in found)


def test_meld(tmp_path):
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    text(tmp_path / "train_sent_emo.csv", f'{header}1,"Oh, it\x92s you.",Ross,Joy,positive,0,3\n')
    text(tmp_path / "dev_sent_emo.csv", f"{header}1,What?,Joey,Neutral,neutral,0,3\n")
    here, there = (sound(tmp_path / folder / "dia0_utt3.wav") for folder in ("train_splits", "dev_splits_complete"))
    found = read_corpus("meld", tmp_path)
    assert facts(found) == [
        ("train-dia0_utt3", "dia0_utt3.wav", "Oh, it's you.", "Ross", "joy", "train"),
        ("dev-dia0_utt3", "dia0_utt3.wav", "What?", "Joey", "neutral", "dev"),
    ]
    assert [recording.audio for recording in found] == [here, there]


def test_esd(tmp_path):
    """Files in three encodings, sounds with and without the folders of splits."""
    text(tmp_path / "0011" / "0011.txt", "0011_000351\tThe nine the eggs.\tAngry\n")
    sound(tmp_path / "0011" / "Angry" / "0011_000351.wav")
    text(tmp_path / "0001" / "0001.txt", "0001_000001\t打远一看\t快乐\n", "gbk")
    sound(tmp_path / "0001" / "快乐" / "train" / "0001_000001.wav")
    text(tmp_path / "0012" / "0012.txt", "0012_000001\tA line.\tSad\n", "utf-16")
    text(tmp_path / "ReadMe.txt", "nothing here\n")
    found = read_corpus("esd", tmp_path)
    assert facts(found) == [
        ("0001_000001", "0001_000001.wav", "打远一看", "0001", "happy", "train"),
        ("0011_000351", "0011_000351.wav", "The nine the eggs.", "0011", "angry", ""),
        ("0012_000001", "0012_000001.wav", "A line.", "0012", "sad", ""),
    ]
    assert [recording.audio.is_file() for recording in found] == [True, True, False]


def test_a_table(tmp_path):
    table = text(tmp_path / "mine.csv", "audio,text,emotion\na/1.wav,Hello.,Sad\na/2.wav,,\n")
    for place in (tmp_path, table):
        assert facts(read_corpus("table", place)) == [
            ("mine-1", "1.wav", "Hello.", "", "sad", ""),
            ("mine-2", "2.wav", "", "", "", ""),
        ]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("librispeach", None, "unknown corpus 'librispeach'; did you mean librispeech"),
        ("librispeech", "", r"holds no librispeech corpus: found no lines in \*.trans.txt"),
        ("table", "file,text\na.wav,b\n", "mine.csv: lacks the column audio; found: file, text"),
        ("table", "audio,text\na.wav,b,c\n", "mine.csv: line 2: its fields don't fit the header's"),
        ("table", "id,audio\nx,a.wav\nx,b.wav\n", "2 recordings have the id 'x'"),
    ],
)
def test_what_is_no_corpus(kind, content, message, tmp_path):
    if content:
        text(tmp_path / "mine.csv", content)
    with pytest.raises(ValueError, match=message):
        read_corpus(kind, tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        read_corpus("table", tmp_path / "nowhere")


# --- manifests -------------------------------------------------------------------------------------------------------


def content(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_for_stage_1(iemocap, tmp_path):
    out = tmp_path / "manifests" / "understanding.jsonl"
    out.parent.mkdir()
    report = make_manifest(ManifestConfig("iemocap", str(iemocap), str(out), rename={"excited": "happy"}))
    audio = "../IEMOCAP/Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M001.wav"
    heard = {"audio": audio, "audio_sec": 1.0, "transcript": "Yeah: do it!", "emotion": "happy"}
    rows = content(out)
    assert [row["id"].partition("impro01_")[2] for row in rows] == [
        "F000-transcribe", "F000-emotion", "M001-transcribe", "M001-emotion",
    ]  # fmt: skip
    assert rows[3] == {
        "id": "Ses02F_impro01_M001-emotion", "task": "emotion", "speaker": "Session2M",
        "messages": [
            {"role": "user", "content": [{"text": "What emotion does the speaker convey? ", **heard}]},
            {"role": "assistant", "content": [{"text": "happy"}]},
        ],
    }  # fmt: skip
    assert (report.num_recordings, report.num_rows, round(3600 * report.hours, 3)) == (2, 4, 2.0)
    assert report.emotions == {"neutral": 1, "happy": 1}
    assert report.left_out == {"nothing to learn for these tasks": 1}
    assert len(read_manifest(out)) == 4


def test_rows_for_stage_2(librispeech, tmp_path):
    out = tmp_path / "speech.jsonl.gz"
    report = make_manifest(ManifestConfig("librispeech", str(librispeech), str(out), stage="speech"))
    rows = [json.loads(line) for line in gzip.decompress(out.read_bytes()).splitlines()]
    assert [row["id"] for row in rows] == ["84-198-0000", "19-198-0000"]
    assert rows[0]["messages"] == [
        {"role": "user", "content": [{"text": "Say the following sentence: Northanger abbey"}]},
        {
            "role": "assistant",
            "content": [
                {
                    "text": "Northanger abbey",
                    "audio": "LibriSpeech/dev-clean/84/198/84-198-0000.flac",
                    "audio_sec": 1.0,
                }
            ],
        },
    ]
    assert report.left_out == {"not 0.5 to 30 s long": 2}


def test_what_is_taken(librispeech, iemocap, tmp_path):
    config = ManifestConfig(
        "librispeech", str(librispeech), str(tmp_path / "a.jsonl"), splits=["dev-clean"], min_sec=0.1
    )
    report = make_manifest(config)
    assert (report.num_recordings, report.left_out) == (2, {"another split": 2})
    config = ManifestConfig("iemocap", str(iemocap), str(tmp_path / "b.jsonl"), emotions=["neutral"])
    report = make_manifest(config)
    assert (report.num_recordings, report.left_out) == (1, {"another emotion, or none": 2})
    few = ManifestConfig("librispeech", str(librispeech), str(tmp_path / "c.jsonl"), limit=2, min_sec=0.1)
    assert make_manifest(few).left_out == {"over the limit": 2}
    assert {row["speaker"] for row in content(tmp_path / "c.jsonl")} == {"84", "19"}  # evenly from the whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ["dev-clea"]}, "splits: unknown split 'dev-clea'; did you mean dev-clean"),
        ({"emotions": ["joy"]}, "emotions: unknown emotion 'joy'; known: none"),
        ({"out": "nowhere/x.jsonl"}, "the folder nowhere does not exist"),
        ({"min_sec": 20.0}, "nothing is left of this corpus: 4 x not 20 to 30 s long"),
    ],
)
def test_what_can_not_be_made(change, message, librispeech, tmp_path):
    config = replace(ManifestConfig("librispeech", str(librispeech), str(tmp_path / "x.jsonl")), **change)
    with pytest.raises(ValueError, match=message):
        make_manifest(config)
    text(tmp_path / "y.jsonl", "{}")
    with pytest.raises(ValueError, match="y.jsonl: exists already"):
        make_manifest(replace(config, out=str(tmp_path / "y.jsonl")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["transcript"]}, "tasks: unknown task 'transcript'; did you mean transcribe"),
        ({"tasks": ["continue"]}, "llm: the task continue needs one"),
        ({"llm": "some"}, "llm: the task continue needs one, and nothing else does"),
        ({"min_sec": 5.0, "max_sec": 2.0}, "must be rising"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ManifestConfig("table", "x", "y", **options)


# --- continuations ---------------------------------------------------------------------------------------------------


def test_what_the_llm_reads_instead_of_the_recording():
    recording = Recording("a", Path("a.wav"), "I lost my keys.")
    assert continuation_prompt(recording) == "Continue the following sentence in a coherent style: I lost my keys."
    assert continuation_prompt(replace(recording, emotion="sad")) == (
        "Continue the following sentence that reflects a 'sad' emotion tone in a coherent style: I lost my keys."
    )


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("It rains. I am at", "It rains."),
        ('"Stop!" he said and', '"Stop!"'),
        ("It costs 3.50 euros", ""),
        ("no end", ""),
        ("下雨了。我在", "下雨了。"),
    ],
)
def test_a_text_that_breaks_off(broken, whole):
    assert complete_sentences(broken) == whole


@pytest.fixture
def llm_folder(tokenizer_folder, tmp_path) -> Path:
    """A tiny random LLM with a tokenizer and a chat template."""
    import torch

    from lightning_s2s.components.llms.causal import CausalLanguageModel
    from parts.small_sizes import QWEN

    torch.manual_seed(0)
    llm = CausalLanguageModel(config=QWEN, tokenizer=str(tokenizer_folder))
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


RECORDINGS = [Recording(str(n), Path(f"{n}.wav"), "word " * (n + 1), emotion="sad" * (n % 2)) for n in range(4)]


def test_continuations_are_the_llms_greedy_words_batched_or_single(llm_folder, monkeypatch):
    import torch

    monkeypatch.setattr("lightning_s2s.construction.continuations.complete_sentences", lambda broken: broken)
    writer = ContinuationWriter(str(llm_folder), max_new_tokens=5)
    batched = writer.write(RECORDINGS)
    assert batched == [writer.write([recording])[0] for recording in RECORDINGS] and any(batched)
    frame = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    ids = writer.tokenizer(frame.format(continuation_prompt(RECORDINGS[1])), return_tensors="pt").input_ids
    assert ids.tolist() == writer.tokenizer(writer.prompt(RECORDINGS[1]), return_tensors="pt").input_ids.tolist()
    for _ in range(5):
        following = writer.model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
    assert batched[1] == " ".join(writer.tokenizer.decode(ids[0, -5:], skip_special_tokens=True).split())


def test_continuations_survive_a_kill(librispeech, tmp_path, monkeypatch):
    """The LLM breaks down in the second batch; the next run asks it for the rest alone."""
    asked, healthy = [], False

    class Writer:
        def __init__(self, *_):
            pass

        def write(self, recordings):
            if len(asked) == 2 and not healthy:
                raise KeyboardInterrupt
            asked.extend(recording.id for recording in recordings)
            return [f"And so on, {recording.id}." for recording in recordings]

    monkeypatch.setattr(corpus_manifest, "ContinuationWriter", Writer)
    out = tmp_path / "x.jsonl"
    config = ManifestConfig(
        "librispeech", str(librispeech), str(out), tasks=["continue"], llm="tiny", batch_size=2, min_sec=0.1
    )
    with pytest.raises(KeyboardInterrupt):
        make_manifest(config)
    assert len(asked) == 2 and not out.exists()
    with pytest.raises(ValueError, match="x.jsonl.partial: was started with another llm"):
        make_manifest(replace(config, llm="other"))
    healthy = True
    assert make_manifest(config).num_rows == 4 and len(asked) == len(set(asked)) == 4
    assert not (tmp_path / "x.jsonl.partial").exists()
    row = content(out)[0]
    assert row["messages"][0]["content"][0]["text"] == "Continue the following sentence in a coherent style: "
    assert row["messages"][1]["content"] == [{"text": "And so on, 84-198-0000."}]

"""`ChatServer`, and a whole run of `construct`, against a server that fails in every way that servers do."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest

from lightning_s2s.commands.construct import make_corpus
from lightning_s2s.construction.chat import ChatReply, ChatRequest, ChatServer, Choice, Text, ask_questions
from lightning_s2s.construction.chat import Question as ChatQuestion
from lightning_s2s.construction.config import CorpusConfig
from lightning_s2s.construction.openai_server import TransientError
from lightning_s2s.construction.speech import SpeechServer
from lightning_s2s.construction.usage import track_usage
from lightning_s2s.construction.writing import PromptedWriter
from lightning_s2s.construction.writing.seeds import Seeds
from parts.construction import FakeCodec, read_rows
from parts.servers import LATE, shorten_pauses, treat_marked_answers_as_late, url_of_nobody
from parts.sounds import as_file, tone

pytest.importorskip("openai", reason="the package openai is not installed")
pytest.importorskip("json_repair", reason="the package json-repair (extra: construction) is not installed")

SOUND = as_file(tone(), 16_000)


class FaultyServer(ThreadingHTTPServer):
    """Chat and speech; the n-th request of a kind gets the n-th of its `faults`, and is answered well behind them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.faults, self.met, self.lock = [], [], Counter(), Lock()
        self.words: dict[str, str] = {}
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that gave up waiting, and a connection that breaks, are part of the tests."""

    def next_fault(self, kind: str) -> str:
        with self.lock:
            fault = next((fault for fault in self.faults if fault[0] == kind), None)
            if fault is None:
                return ""
            self.faults.remove(fault)
            self.met[fault[1]] += 1
            return fault[1]


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = "chat" if self.path.endswith("/chat/completions") else "speech"
        self.server.requests.append((kind, request))
        fault = self.server.next_fault(kind)
        if fault == "drop":
            self.close_connection = True
            return self.connection.close()
        status = int(fault) if fault.isdigit() else 200
        content = self.chat(request, fault) if kind == "chat" else SOUND
        if status > 200:
            content = json.dumps({"error": {"message": f"the server says {fault}"}}).encode()
        elif kind == "speech":
            content = {"empty": b"", "torn": SOUND[:-5000]}.get(fault, SOUND)
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if kind == "chat" or status > 200 else "audio/wav")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After-Ms", "1")
        if fault == "late":
            self.send_header(LATE, "1")
        self.end_headers()
        self.wfile.write(content)

    def chat(self, request: dict, fault: str) -> bytes:
        schema = request.get("response_format", {}).get("json_schema", {}).get("schema", {"properties": {}})
        prompt = request["messages"][-1]["content"]
        words = f"This is about {sum(prompt.encode()) % 9973} and {request['seed']}."
        answer = {name: field.get("enum", [words])[0] for name, field in schema["properties"].items()}
        if "Answer with" in prompt:
            answer = self.server.words[prompt.splitlines()[-1]]
        text = {"broken": '{"line": ', "empty": "", "torn": json.dumps(answer)[:12]}.get(
            fault, answer if isinstance(answer, str) else json.dumps(answer)
        )
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "length" if fault in ("torn", "cut") else "stop", "message": message}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        return json.dumps(body).encode()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    treat_marked_answers_as_late(monkeypatch)
    shorten_pauses(monkeypatch)
    server = FaultyServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def chat(server):
    return ChatServer(
        f"http://127.0.0.1:{server.server_port}/v1", "tiny", max_retries=2, timeout_sec=600.0,
        extra={"top_k": 5}, concurrency=3,
    )  # fmt: skip


ASKED = 'Say something.\n\nAnswer in JSON: {"line": "..."}'
REQUEST = ChatRequest("Say something.", "Be kind.", {"properties": {"line": {"type": "string"}}}, 3)


def test_what_is_asked_for(chat, server):
    (reply,) = chat.ask([REQUEST])
    assert isinstance(reply, ChatReply) and json.loads(reply.text)["line"].startswith("This is about")
    assert (reply.cut_off, reply.input_tokens, reply.output_tokens) == (False, 100, 20)
    ((_, request),) = server.requests
    assert request == {
        "model": "tiny", "temperature": 0.9, "max_tokens": 400, "seed": 3, "top_k": 5,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": ASKED}],
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": REQUEST.schema, "strict": True},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "the server answered 429"),
        ("500", "the server answered 500"),
        ("late", "got no answer within 600 s"),
        ("drop", "the connection broke off"),
    ],
)
def test_what_may_pass_is_tried_again_and_counted(fault, reason, chat, server):
    server.faults = [("chat", fault)] * 2
    with track_usage() as usage:
        assert isinstance(chat.ask([REQUEST])[0], ChatReply)
    assert usage.problems == {reason: 2}
    server.faults = [("chat", fault)] * 3
    (lost,) = chat.ask([REQUEST])
    assert isinstance(lost, TransientError) and str(lost) == reason


def test_plain_words_take_a_request_for_each_field(chat, server):
    chat = replace(chat, answers="words")
    fields = {"reply": Text(9), "emotion": Choice(("neutral", "happy", "sad"))}
    only = "Answer with one of these alone: neutral, happy, sad."
    server.words = {"Answer with the reply alone.": '\n"I am sorry."\nHere you are!', only: "It is Sad, not happy."}
    with track_usage() as usage:
        (answer,) = ask_questions(chat, [ChatQuestion("Reply.", fields, 3)], 1)
    assert answer.values == {"reply": "I am sorry.", "emotion": "sad"}
    assert (usage.input_tokens, usage.output_tokens) == (200, 40)
    prompts = [request["messages"][-1]["content"] for _, request in server.requests]
    assert prompts == ["Reply.\n\nAnswer with the reply alone.", f'Reply.\n\nreply: "I am sorry."\n{only}']
    server.words |= {"Answer with the reply alone.": "One. Two. Thr", only: "Angry."}
    server.faults = [("chat", "cut")]
    (answer,) = ask_questions(chat, [ChatQuestion("Reply.", fields, 3)], 1)
    assert answer.reason == "malformed: emotion is none of neutral, happy, sad"
    assert json.loads(answer.text)["reply"] == "One. Two."


def test_what_is_refused_ends_the_run(chat, server):
    server.faults = [("chat", "401")]
    with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/v1: 401: the server says 401"):
        chat.ask([REQUEST])


def test_a_server_that_is_not_there(chat):
    with url_of_nobody() as url, pytest.raises(ValueError, match="no answer .*refused"):
        replace(chat, base_url=url).ask([REQUEST])


def test_a_run_over_a_faulty_server_loses_nothing_and_counts_everything(chat, server, tmp_path):
    """Every fault of chat and speech; where retries end, the next run makes what a run over a sound server makes."""

    def config(name: str, attempts: int = 8, retries: int = 11) -> CorpusConfig:
        tts = SpeechServer(chat.base_url, "tts", max_retries=retries, timeout_sec=600.0, concurrency=2)
        asked = Seeds({"train": 4, "validation": 1}, emotions_per_line=2)
        writer = PromptedWriter(
            replace(chat, max_retries=retries), asked, attempts=attempts,
            price_per_million_tokens={"input": 1.0, "output": 10.0},
        )  # fmt: skip
        return CorpusConfig(
            output_dir=str(tmp_path / name / "corpus"), work_dir=str(tmp_path / name / "work"), writer=writer, tts=tts,
            vocoder=FakeCodec(), assistant_voice="anna",
            user_voices={"train": ["bob", "cleo"], "validation": ["dan"], "test": ["eve"]},
        )  # fmt: skip

    sound = make_corpus(config("sound"))
    assert len(sound.kept) == 10 and not sound.usage.problems and not sound.incomplete
    assert (sound.usage.input_tokens, sound.usage.output_tokens) == (1500, 300)  # five lines and ten replies
    assert config("sound").writer.cost(sound.usage) == pytest.approx((1500 + 300 * 10) / 1e6)

    server.faults = [("chat", fault) for fault in ("429", "500", "late", "drop", "broken", "empty", "torn")]
    server.faults += [("speech", fault) for fault in ("429", "500", "late", "drop", "empty", "torn")]
    faulty = make_corpus(config("faulty"))
    assert len(faulty.kept) == len(faulty.candidates) == 10 and not faulty.incomplete and not server.faults
    malformed = {reason: n for reason, n in faulty.usage.problems.items() if reason.startswith("malformed: ")}
    assert sum(malformed.values()) == 3 and malformed["malformed: empty answer"] == 1
    assert {reason: n for reason, n in faulty.usage.problems.items() if reason not in malformed} == {
        "the server answered 429": 2, "the server answered 500": 2, "got no answer within 600 s": 2,
        "the connection broke off": 2, "got no audio": 1, "got 11000 of 16000 bytes of audio": 1,
    }  # fmt: skip

    server.faults = [("chat", "500"), ("speech", "429"), ("speech", "empty")]
    broken = make_corpus(config("broken", retries=0))
    lost = [candidate for candidate in broken.candidates if not candidate.kept]
    assert len(broken.candidates) == 10 and 2 <= len(lost) <= 6 and broken.incomplete.total() == 3
    assert {candidate.rejected_by for candidate in lost} == {"writing", "speech"}
    assert {candidate.reason for candidate in lost if candidate.rejected_by == "writing"} == {
        "not written: the server answered 500"
    }
    asked = len(server.requests)
    again = make_corpus(config("broken", retries=0))
    assert len(again.kept) == 10 and not again.incomplete
    assert len(server.requests) - asked < 15  # what was there is not asked for again
    for path in (tmp_path / "sound" / "corpus").glob("*.jsonl.gz"):
        assert read_rows(tmp_path / "broken" / "corpus" / path.name) == read_rows(path), path.name

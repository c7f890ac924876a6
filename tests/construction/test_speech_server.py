"""`SpeechServer` against a server that fails in every way that servers do, on this machine."""

from __future__ import annotations

import json
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from lightning_s2s.construction.running import ItemFailure, Local, run_step
from lightning_s2s.construction.speech import SpeechError, SpeechServer
from lightning_s2s.construction.speech.speaking import SpeakTexts
from parts.servers import LATE, shorten_pauses, treat_marked_answers_as_late, url_of_nobody
from parts.sounds import as_file, tone
from parts.waiting import wait_for

SOUND = as_file(tone(), 24_000)


class FaultyServer(ThreadingHTTPServer):
    """Does what a request's text says, `FAULT` or `FAULT N`: N times, then it speaks."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.times, self.keys = [], Counter(), []
        self.closing = Event()
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        text = request["input"]
        self.server.times[text] += 1
        fault, _, times = text.partition(" ")
        if times.isdigit() and self.server.times[text] > int(times):
            fault = "speak"
        if fault == "never":
            self.server.closing.wait()
        status = int(fault) if fault.isdigit() else 200
        error = json.dumps({"error": {"message": f"the server says {fault}"}}).encode()
        content = {"empty": b"", "torn": SOUND[:-5000], "json": error}.get(fault, error if status > 200 else SOUND)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After-Ms", "1")
        if fault == "late":
            self.send_header(LATE, "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai", reason="the package openai is not installed")
    treat_marked_answers_as_late(monkeypatch)
    shorten_pauses(monkeypatch)
    server = FaultyServer()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(server):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return SpeechServer(url, "tiny-tts", max_retries=3, timeout_sec=600.0)


def test_what_is_asked_for(engine, server, monkeypatch):
    monkeypatch.setenv("SPEECH_KEY", "secret")
    engine.api_key_variable, engine.emotions = "SPEECH_KEY", {"sad": "sad, slow"}
    engine.extra = {"language": "English"}
    waveform, sample_rate = engine.synthesise("hello", "vivian", "sad", "Close to tears.", speed=1.1)
    assert (len(waveform), sample_rate) == (8000, 24_000)
    assert server.requests == [
        {
            "model": "tiny-tts", "voice": "vivian", "input": "hello", "response_format": "wav", "speed": 1.1,
            "instructions": "Speak in a sad, slow voice. Close to tears.", "language": "English",
        }
    ]  # fmt: skip
    assert server.keys == ["Bearer secret"]
    engine.instructions = ""
    engine.synthesise("again", "vivian", "happy")
    assert "instructions" not in server.requests[1]


@pytest.mark.parametrize("text", ["429 2", "500 3", "503 1", "empty 1", "torn 2", "json 1", "late 1"])
def test_what_passes_is_tried_again(text, engine, server):
    assert len(engine.synthesise(text, "vivian")[0]) == 8000
    assert server.times[text] == int(text.split()[1]) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("429", "the server answered 429"),
        ("500", "the server answered 500"),
        ("empty", "got no audio"),
        ("torn", "got 11000 of 16000 bytes"),
        ("json", "got no audio that can be read"),
        ("late", "got no answer within 600 s"),
    ],
)
def test_what_does_not_pass_costs_one_text(text, message, engine, server):
    with pytest.raises(SpeechError, match=message):
        engine.synthesise(text, "vivian")
    assert server.times[text] == 4


def test_a_server_that_never_answers_is_given_up_by_the_clock(engine, server):
    engine.timeout_sec = 0.2
    with pytest.raises(SpeechError, match="got no answer within 0.2 s"):
        engine.synthesise("never", "vivian")
    wait_for(lambda: len(server.requests) == 4, "the requests to arrive, which may take longer than they wait")


@pytest.mark.parametrize(
    ("text", "message"), [("404", "404: the server says 404"), ("401", "401: the server says 401")]
)
def test_what_is_refused_ends_the_run(text, message, engine, server):
    with pytest.raises(ValueError, match=rf"http://127.0.0.1:\d+/v1: {message}"):
        engine.synthesise(text, "vivian")
    assert server.times[text] == 1


def test_a_server_that_is_not_there(engine):
    engine.max_retries = 0
    with url_of_nobody() as engine.base_url, pytest.raises(ValueError, match="no answer .*refused"):
        engine.synthesise("hello", "vivian")


def test_nothing_is_lost_or_spoken_twice(engine, server, tmp_path):
    """A run over good and bad texts, several at a time, and a second one once the server is well."""
    texts = ["a", "429 1", "b", "torn", "c", "500 2", "empty", "d", "json 1"]
    step = SpeakTexts("replies", engine, 1.0, tmp_path)
    items = [("vivian", text, "sad") for text in texts]
    results = run_step(step, items, Local(), tmp_path / "steps")
    assert [r.reason.partition(" in ")[0] for r in results if isinstance(r, ItemFailure)] == ["'torn'", "'empty'"]
    assert len(list((tmp_path / "tts").iterdir())) == 7
    problems = Counter()
    for result in results:
        usage = result.usage.as_json() if isinstance(result, ItemFailure) else result["usage"]
        problems.update(usage["problems"])
    assert problems == {
        "the server answered 429": 1, "the server answered 500": 2,
        "got no audio that can be read (format not recognised)": 1,
        "got 11000 of 16000 bytes of audio": 4, "got no audio": 4,
    }  # fmt: skip
    before = dict(server.times)
    again = run_step(step, items, Local(), tmp_path / "steps")
    assert [r for r in again if not isinstance(r, ItemFailure)] == [
        r for r in results if not isinstance(r, ItemFailure)
    ]
    assert {text: times for text, times in server.times.items() if times > before[text]}.keys() == {"torn", "empty"}


def test_instructions_know_two_fields():
    with pytest.raises(ValueError, match="the only fields are {emotion} and {style}; got 'Be {mood}.'"):
        SpeechServer("http://localhost:1/v1", "m", instructions="Be {mood}.")
    same = SpeechServer("http://localhost:1/v1", "m").identity
    assert same == SpeechServer("http://localhost:2/v1", "m", concurrency=1).identity
    assert same != SpeechServer("http://localhost:1/v1", "m", emotions={"sad": "in tears"}).identity

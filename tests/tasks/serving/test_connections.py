"""Clients that say nothing, little or too much at a time, beside one that behaves."""

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from tasks.serving import connections
from tasks.serving.engine import Engine
from tasks.serving.server import Server, listen
from tasks.serving.service import Service
from tasks.sudoku.config import PRESETS
from tasks.sudoku.task import SudokuTask

EASY = "1234341221.343.1"
CONFIG = PRESETS["tiny"].changed(width=16, eval_max_steps=24)
MOST = 8


class Running:
    """A server in a thread of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.engine = Engine(CONFIG.build().eval(), 24, 4, 4)
        self.server = Server(Service(SudokuTask(), CONFIG, self.engine, rate=1e6))
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        self.opened: list[socket.socket] = []

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A connection that has sent something."""
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.opened.append(opened)
        opened.sendall(sent)
        return opened

    def get(self, path: str = "/health") -> int:
        """The status that a client gets which behaves."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
            client.request("GET", path)
            return client.getresponse().status

    def close(self) -> None:
        for opened in self.opened:
            opened.close()
        self.server.service.draining = True
        self.thread.join()
        self.engine.close()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """For at most 8 connections, half as many of one address, and clients that are quick."""
    monkeypatch.setattr("tasks.serving.server.affordable", lambda: MOST)
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.3)
    server = Running()
    yield server
    server.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_clients_that_do_not_ask_are_closed_in_time(running: Running) -> None:
    silent = running.connect()
    trickling = running.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: ")
    began, reply = time.monotonic(), b""
    trickling.settimeout(0.02)
    while not reply:
        assert time.monotonic() - began < 5
        trickling.sendall(b"a")
        with suppress(TimeoutError):
            reply = trickling.recv(4096)
    assert time.monotonic() - began > 0.2
    trickling.settimeout(5)
    # The body may arrive after the head; what was sent meanwhile may reset the connection.
    with suppress(ConnectionResetError):
        while part := trickling.recv(4096):
            reply += part
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive in time" in reply
    assert silent.recv(1) == b""
    assert running.get() == 200


def test_a_body_has_time_of_its_own(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its head took is not counted against it."""
    monkeypatch.setattr(connections, "WAIT_SECONDS", 60)
    waiting = running.server.server_state.waiting
    slow = running.connect(b"POST /solve HTTP/1.1\r\nHost: localhost\r\n")
    wait_for(lambda: len(waiting) == 1)
    began = max(waiting.values())
    slow.sendall(b"Content-Length: 9\r\n\r\n")
    wait_for(lambda: max(waiting.values(), default=began) > began)


def test_a_client_that_does_not_read_is_closed_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(30_000_000))
    monkeypatch.setattr("tasks.serving.app.PAGE", tmp_path)
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.3)
    running = Running()
    running.connect(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(lambda: running.server.service.in_flight == 1)
    wait_for(lambda: running.server.service.in_flight == 0)
    running.close()


def test_the_idlest_give_way_to_who_comes(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "WAIT_SECONDS", 60)
    connections.SPARING._next.clear()
    with closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)) as behaves:
        behaves.request("GET", "/health")
        assert behaves.getresponse().read()
        silent = [running.connect() for _ in range(3 * MOST)]
        assert silent[-MOST // 2].recv(1) == b""
        # Whoever asks is served: on its connection between two requests, and on a new one.
        behaves.request("GET", "/health")
        assert behaves.getresponse().status == 200
        assert running.get() == 200
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("127.0.0.1 has 4 connections, half of the limit: the idlest are closed.")


def test_who_hangs_up_frees_its_slot(running: Running) -> None:
    inner, held = running.engine.module, threading.Event()

    class Held(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            held.wait()
            return inner(*args)

    running.engine.module = Held()
    body = json.dumps({"puzzle": EASY}).encode()
    head = b"POST /solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    asking = [running.connect(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)]
    wait_for(lambda: running.engine.running == 1)
    asking += [
        running.connect(head + b"Content-Length: %d\r\n\r\n" % len(body) + body) for _ in "ab"
    ]
    wait_for(lambda: running.engine.pending == 3)
    for opened in asking:
        opened.close()
    wait_for(lambda: running.engine.pending == 1)
    held.set()
    wait_for(lambda: running.engine.pending == running.server.service.in_flight == 0)
    assert running.engine.rows == 1
    assert running.server.service.metrics.requests == {("/solve", 499): 3}


def test_a_body_that_breaks_off_is_no_question(running: Running) -> None:
    head = b"POST /solve HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    running.connect(head + b"5\r\n12345\r\n").close()
    wait_for(lambda: running.server.service.metrics.requests == {("/solve", 499): 1})


def test_a_connection_that_cannot_be_accepted_makes_room_and_one_line(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    connections.SPARING._next.clear()
    first = running.connect()
    wait_for(lambda: len(running.server.server_state.waiting) == 1)
    loop = next(iter(running.server.server_state.waiting)).loop
    context = {"message": "", "exception": OSError(24, "Too many open files"), "socket": None}
    for _ in range(1000):
        loop.call_soon_threadsafe(loop.call_exception_handler, context)
    assert first.recv(1) == b""
    assert running.get() == 200
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage().startswith("No connection can be accepted ([Errno 24]")


def test_a_line_is_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    sparing, now = connections.Sparing(), [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])

    def logged(line: int, error: Exception | None = None) -> bool:
        trace = (type(error), error, None) if error else None
        return sparing.filter(logging.LogRecord("a", 30, "a.py", line, "a", (), trace))

    assert [logged(1), logged(1), logged(2), logged(1, OSError()), logged(1, KeyError())] == [
        True, False, True, True, True,
    ]  # fmt: skip
    now[0] = 60.0
    assert [logged(1), logged(1)] == [True, False]

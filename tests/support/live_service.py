"""A service of a small model that listens on a port, and clients that send it raw bytes."""

import contextlib
import json
import logging
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.serving.engine import Engine
from tasks.serving.server import Server, allowed_hosts, listen
from tasks.serving.service import Service
from tasks.sudoku.config import PRESETS
from tasks.sudoku.task import SudokuTask

ROOT = Path(__file__).parents[2]
CONFIG = PRESETS["tiny"].changed(width=8, eval_max_steps=2)
# What a reply may say; 500 is no such thing.
MEANT = {100, 200, 206, 304, 307, 501, 503, *range(400, 432)}
BODY = b'{"puzzle": "1234341221.343.1"}'
JSON = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"


def post(body: bytes, head: bytes = JSON, path: bytes = b"/solve", close: bool = False) -> bytes:
    """A request with a body, as bytes."""
    length = b"content-length: %d\r\n" % len(body)
    end = b"connection: close\r\n" if close else b""
    return b"POST %s HTTP/1.1\r\n" % path + head + length + end + b"\r\n" + body


CLOSING = post(BODY, close=True)


class Errors(logging.Handler):
    """Collects what the server logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


def start() -> tuple[int, Errors]:
    """A server in a thread of this process; its port, and the errors that it will log."""
    torch.set_num_threads(1)
    model = CONFIG.build().eval()
    model.solving.solver = CONFIG.solve.evaluation_solver()  # type: ignore[union-attr]
    engine, hosts = Engine(model, 2, 8, 64), allowed_hosts("127.0.0.1", "127.0.0.1")
    service = Service(SudokuTask(), CONFIG, engine, timeout=10.0, rate=1e6, hosts=hosts)
    listener, errors = listen("127.0.0.1", 0), Errors()
    server = Server(service)  # it configures logging
    log = logging.getLogger("uvicorn.error")
    log.handlers, log.propagate = [errors], False
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return listener.getsockname()[1], errors


@contextlib.contextmanager
def process(folder: Path, files: int | None = None) -> Iterator[tuple[int, Path]]:
    """The command `serve`, with so many open files at most; its port, and its log."""
    weights = {f"module.{name}": tensor for name, tensor in CONFIG.build().state_dict().items()}
    meta = {"task": "sudoku", "preset": "tiny", "config": CONFIG.to_json()}
    Checkpoint({"average": weights}, meta).save(folder / "model.safetensors")
    command = [sys.executable, "-m", "tasks.sudoku", "serve", "--port", "0", "--rate", "1000"]
    command += ["--checkpoint", str(folder / "model.safetensors")]
    limit: Callable[[], None] | None = None
    if files is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))  # noqa: E731
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=limit,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert started.stdout is not None
    try:
        match = re.search(r"on http://127\.0\.0\.1:(\d+)$", started.stdout.readline().strip())
        assert match, (folder / "log").read_text()
        yield int(match[1]), folder / "log"
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def ask(port: int, data: bytes, patience: float, address: str = "127.0.0.1") -> bytes:
    """All that the server replies until it closes, or is silent for `patience` seconds."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), patience, (address, 0)) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                reply += part
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    return reply


def statuses(reply: bytes) -> list[int]:
    """The statuses of all replies on a connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", reply)]


def require_answer(port: int, address: str = "127.0.0.1", patience: float = 10.0) -> None:
    """Ask as a well-behaved client does."""
    reply = ask(port, CLOSING, patience, address)
    assert statuses(reply)[-1:] == [200], reply[:200]
    assert len(json.loads(reply.split(b"\r\n\r\n", 1)[1])["answer"]) == 16

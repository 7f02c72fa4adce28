"""Heads and bodies of HTTP requests, as raw bytes to a server of its own; see `entry`.

Whatever comes, the server replies with a status that is meant, or closes the connection; it logs no
traceback, and answers the next client.
"""

import logging
import re
import socket
import threading
import time

import torch
from entry import fuzz, instrumented

with instrumented("tasks.serving", "uvicorn.protocols.http", "h11", "starlette"):
    from tasks.serving.app import Service
    from tasks.serving.engine import Engine
    from tasks.serving.server import Server, listen
    from tasks.sudoku.config import PRESETS
    from tasks.sudoku.task import SudokuTask

MEANT = {
    100,
    200,
    206,
    304,
    400,
    403,
    404,
    405,
    408,
    413,
    414,
    415,
    416,
    421,
    422,
    429,
    431,
    501,
    503,
}
BODY = b'{"puzzle": "1234341221.343.1"}'
JSON = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"
GOOD = b"POST /solve HTTP/1.1\r\n" + JSON + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
CLOSING = GOOD.replace(b"host", b"connection: close\r\nhost")
SEEDS = [
    b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    b"HEAD /%2e%2e/page/index.html?a=b HTTP/1.1\r\nhost: 127.0.0.1\r\nif-none-match: *\r\n\r\n",
    GOOD,
    b"POST /trajectory HTTP/1.1\r\n" + JSON + b"transfer-encoding: chunked\r\n\r\n1e\r\n" + BODY
    + b"\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: 127.0.0.1\r\nrange: bytes=0-1,5-\r\nexpect: 100-continue\r\n\r\n",
]  # fmt: skip


class Failures(logging.Handler):
    """Collects what the server logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.seen.append(self.format(record))


def start() -> tuple[int, Failures]:
    """A server of a small model in a thread; its port, and the errors that it will log."""
    torch.set_num_threads(1)
    config = PRESETS["tiny"].changed(width=8, eval_max_steps=2)
    model = config.build().eval()
    model.solving.solver = config.solve.evaluation_solver()  # type: ignore[union-attr]
    service = Service(SudokuTask(), config, Engine(model, 2, 8, 64), timeout=10.0, rate=1e6)
    listener, failures = listen("127.0.0.1", 0), Failures()
    server = Server(service)  # configures logging
    log = logging.getLogger("uvicorn.error")
    log.handlers, log.propagate = [failures], False
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return listener.getsockname()[1], failures


def ask(port: int, data: bytes, patience: float) -> bytes:
    """All that the server replies until it closes, or is silent for `patience` seconds."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                reply += part
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
    return reply


def one_input(data: bytes) -> None:
    """One connection; now and then a good question after it."""
    reply = ask(PORT, data, 0.03)
    statuses = {int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3})", reply)}
    if FAILURES.seen or not statuses <= MEANT or (reply and not statuses):
        raise AssertionError(f"{reply[:200]!r}, logged {FAILURES.seen}")
    if sum(data) % 64 == 0 and b" 200 " not in ask(PORT, CLOSING, 20.0):
        raise AssertionError("the next client has no answer")


if __name__ == "__main__":
    PORT, FAILURES = start()
    fuzz(one_input, "http", SEEDS)

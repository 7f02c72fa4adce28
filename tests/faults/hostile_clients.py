"""Clients of the service that are slow, many, rude or gone, and requests that are no requests."""

import contextlib
import functools
import itertools
import json
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cases import CLEANUP, REFUSED, Fault
from live_service import (
    BODY,
    CLOSING,
    JSON,
    MEANT,
    Errors,
    ask,
    post,
    process,
    require_answer,
    statuses,
)
from live_service import start as start_server

GOOD_CLIENT = "127.0.0.2"  # another address than that of the bad ones
LOG_LINES = 60


@functools.cache
def here() -> tuple[int, Errors]:
    """A server in this process."""
    return start_server()


@functools.cache
def elsewhere(files: int | None = None) -> tuple[int, Path]:
    """A server in a process of its own, which ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="fault-serve-"))
    CLEANUP.callback(shutil.rmtree, folder, ignore_errors=True)
    return CLEANUP.enter_context(process(folder, files))


def raw(data: bytes, folder: Path) -> str | None:
    """Raw bytes have a reply that is meant, or none, and the next client an answer."""
    port, errors = here()
    errors.seen.clear()
    reply = ask(port, data, 0.3)
    found = statuses(reply)
    require_answer(port)
    assert MEANT.issuperset(found), found
    assert found or not reply, reply[:200]
    assert not errors.seen, errors.seen[0][-300:]
    return REFUSED if found and max(found) >= 400 else None


def must_reply(data: bytes, status: set[int], folder: Path) -> str | None:
    """A request with one right reply."""
    port, _ = here()
    found = statuses(ask(port, data, 2.0))
    assert found, "no reply"
    assert set(found) <= status, found
    return REFUSED if found[-1] >= 400 else None


def head_of_page(folder: Path) -> None:
    """HEAD replies as GET does, without the body."""
    port, _ = here()
    for path in (b"/", b"/health", b"/metrics"):
        reply = ask(port, b"HEAD %s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % path, 1.0)
        assert statuses(reply) == [200], (path, reply[:100])
        assert reply.endswith(b"\r\n\r\n"), path


@contextlib.contextmanager
def many(port: int, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, as many as the server takes, that have sent the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), 1.0)
                found.append(stack.enter_context(connection))
                connection.sendall(data)
        yield found


def crowd(count: int, data: bytes, files: int | None, folder: Path) -> None:
    """Many connections from one address that send something, and no more."""
    port, log = elsewhere(files)
    before = len(log.read_bytes().splitlines())
    with many(port, count, data):
        for _ in range(5):
            require_answer(port, GOOD_CLIENT)
            time.sleep(0.2)
    require_answer(port, GOOD_CLIENT)
    require_answer(port)
    lines = log.read_bytes().splitlines()[before:]
    assert len(lines) <= LOG_LINES, f"{len(lines)} lines: {lines[-1][:200]!r}"


def trickle(count: int, data: bytes, folder: Path) -> None:
    """Many requests that come byte by byte."""
    port, _ = elsewhere()
    with many(port, count) as connections:
        for byte in data[:12]:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.sendall(bytes([byte]))
            require_answer(port, GOOD_CLIENT)


def hang_ups(data: bytes, folder: Path) -> None:
    """Clients that leave before the answer leave nothing behind."""
    port, _ = elsewhere()
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", port), 5.0) as connection:
            connection.sendall(data)
    deadline = time.monotonic() + 20
    while True:
        reply = ask(port, b"GET /metrics HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n", 5.0, GOOD_CLIENT)
        if b"puzzles_running 0" in reply and b"puzzles_waiting 0" in reply:
            break
        assert time.monotonic() < deadline, reply[-300:]
        time.sleep(0.1)
    require_answer(port, GOOD_CLIENT)


def pipelined(folder: Path) -> None:
    """A hundred requests in one piece are all answered, in order."""
    port, _ = here()
    reply = ask(port, post(BODY) * 99 + CLOSING, 10.0)
    assert statuses(reply) == [200] * 100, statuses(reply)


def no_schema(folder: Path) -> None:
    """The pages that FastAPI would add, with scripts from elsewhere, do not exist."""
    port, _ = here()
    for path in (b"/docs", b"/redoc"):
        reply = ask(port, b"GET %s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % path, 1.0)
        assert b"://cdn" not in reply, path
        assert b"content-security-policy" in reply, path


def page(host: str) -> bytes:
    """A request for the page by another name, as a page of another site can make one."""
    return b"GET / HTTP/1.1\r\nhost: %s\r\n\r\n" % host.encode()


def value(puzzle: object) -> bytes:
    """A question that holds this in place of the puzzle."""
    return post(json.dumps({"puzzle": puzzle}).encode())


GET = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"
START = b"POST /solve HTTP/1.1\r\n" + JSON
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"
RAW: dict[str, bytes] = {
    "nothing": b"",
    "zeros": bytes(1000),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "SSH": b"SSH-2.0-x\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"host: a\r\n\r\n",
    "line feeds alone": GET.replace(b"\r", b"") + b"\n",
    "a head of 100 kB": GET + b"a: " + b"b" * 100_000 + b"\r\n\r\n",
    "10,000 fields": GET + b"a: b\r\n" * 10_000 + b"\r\n",
    "a path of 60 kB": b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    "an endless first line": b"G" * 200_000,
    "a field without a name": GET + b": a\r\n\r\n",
    "a folded field": GET + b"a: b\r\n c\r\n\r\n",
    "zeros in a field": GET + b"a: \0\r\n\r\n",
    "a space before the colon": GET + b"a : b\r\n\r\n",
    "other bytes": GET + b"a: \xff\xfe\r\n\r\n",
    "a path of other bytes": b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
    "a whole address": b"GET http://a/health HTTP/1.1\r\nhost: a\r\n\r\n",
    "an unknown method": b"EVIL / HTTP/1.1\r\nhost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nhost: a\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "an upgrade": GET
    + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n",
    "a length below 0": START + b"content-length: -1\r\n\r\n",
    "a length of 2**70": START + b"content-length: %d\r\n\r\n" % 2**70,
    "a long length": START + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": START + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length and chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n")
    + b"0\r\n\r\n",
    "a chunk of 2**70": CHUNKED + b"%x\r\n" % 2**70,
    "a chunk below 0": CHUNKED + b"-1\r\na\r\n",
    "a chunk that is no number": CHUNKED + b"zz\r\n",
    "chunks beyond the limit": CHUNKED + b"400\r\n" + b"a" * 1024 + b"\r\n",
    "100,000 small chunks": CHUNKED + b"1\r\na\r\n" * 100_000,
    "an unknown encoding": CHUNKED.replace(b"chunked", b"evil"),
    "a body of 1 MB": post(b"a" * 10**6),
    "no body": post(b""),
    "a body cut short": post(BODY)[:-5],
    "no content type": post(BODY, b"host: a\r\n"),
    "text": post(BODY, b"host: a\r\ncontent-type: text/plain\r\n"),
    "a compressed body": post(BODY, JSON + b"content-encoding: gzip\r\n"),
    "a body of other bytes": post(b"\xff\xfe"),
    "deep JSON": post(b"[" * 16_000),
    "a number of 5,000 digits": post(b'{"puzzle": ' + b"9" * 5000 + b"}"),
    "NaN": post(b'{"puzzle": NaN}'),
    "half of a surrogate pair": post(b'{"puzzle": "\\ud800"}'),
    "zeros in a puzzle": value("\0" * 16),
    "no puzzle": value(""),
    "a list": value(["1"]),
    "null": value(None),
    "a number": value(1234),
    "a puzzle of 16 kB": value("1" * 16_000),
    "other digits": value("\u0661" * 16),
    "another size": value("." * 81),
    "contradicting clues": value("11" + "." * 14),
    "a maze": value("S   " * 4),
    "a foreign field": post(b'{"puzzle": "1", "evil": 1}'),
    "a list as the body": post(b"[1]"),
    "up and away": b"GET /../../../../etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n",
    "up and away, coded": b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n",
    "up and away, coded twice": b"GET /%252e%252e/app.py HTTP/1.1\r\nhost: a\r\n\r\n",
    "a zero in a path": b"GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n",
    "ranges": GET + b"range: bytes=0-,1-,2-,3-\r\n\r\n",
    "a range beyond the end": GET + b"range: bytes=99999999-\r\n\r\n",
    "a bad date": GET + b"if-modified-since: x\r\n\r\n",
    "PUT": b"PUT /solve HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "GET /solve": b"GET /solve HTTP/1.1\r\nhost: a\r\n\r\n",
    "DELETE": b"DELETE / HTTP/1.1\r\nhost: a\r\n\r\n",
    "two requests, one bad": post(BODY) + b"evil\r\n\r\n",
    "no expectation that we know": GET + b"expect: evil\r\n\r\n",
}
FOREIGN = b"host: evil.example\r\ncontent-type: application/json\r\n"


def faults() -> list[Fault]:
    """All faults of this kind."""
    found: list[Fault] = [(f"request: {name}", partial(raw, data)) for name, data in RAW.items()]
    refusals = set(range(400, 500))
    found += [
        ("request: a foreign host", partial(must_reply, post(BODY, FOREIGN), refusals)),
        (
            "request: the page of a foreign host",
            partial(must_reply, page("evil.example"), refusals),
        ),
        ("request: localhost", partial(must_reply, page("localhost:80"), {200})),
        ("request: HEAD", head_of_page),
        ("request: pages of a framework", no_schema),
        ("client: a hundred requests at once", pipelined),
    ]
    sent = {"nothing": b"", "half a head": GET, "half a body": post(BODY)[:-5]}
    for (name, data), count in itertools.product(sent.items(), (100, 1100)):
        found.append((f"clients: {count} that send {name}", partial(crowd, count, data, None)))
    for name, data in sent.items():
        found.append((f"clients: 300 that send {name}, 128 files", partial(crowd, 300, data, 128)))
        if data:
            found.append((f"clients: 200 that trickle {name}", partial(trickle, 200, data)))
    for name, data in {"a solve": post(BODY), "a trajectory": post(BODY, path=b"/trajectory"),
                       "half a body": post(BODY)[:-5], "the page": page("a")}.items():  # fmt: skip
        found.append((f"clients: 100 that hang up on {name}", partial(hang_ups, data)))
    return found

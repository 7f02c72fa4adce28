"""The command `serve` under load: hostile clients, many clients, and many requests."""

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from tasks.puzzles.evaluate import predict
from tasks.runs import load_model
from tasks.sudoku.task import SudokuTask

pytestmark = pytest.mark.slow

HOSTILE = Path(__file__).parents[2] / "support" / "hostile_clients.py"
JSON = {"content-type": "application/json"}
EASY = "1234341221.343.1"
QUESTION = (
    b"POST /solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 30\r\n\r\n{"puzzle": "1234341221.343.1"}'
)
QUICK = ("--rate", "1000000")


def ask(connection: http.client.HTTPConnection, puzzle: str) -> tuple[int, dict[str, Any]]:
    connection.request("POST", "/solve", json.dumps({"puzzle": puzzle}), JSON)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


@contextmanager
def hostile_clients(port: int, silent: int, trickling: int) -> Iterator[None]:
    command = [sys.executable, str(HOSTILE), str(port), str(silent), str(trickling)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"all have connected\n"
        yield
        process.kill()


def times(port: int, count: int) -> list[float]:
    """Seconds of requests, every other one on a new connection; all must be answered."""
    taken = []
    for _ in range(count // 2):
        with closing(connect(port)) as connection:
            for _ in range(2):
                began = time.perf_counter()
                assert ask(connection, EASY)[0] == 200
                taken.append(time.perf_counter() - began)
    return taken


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]


@pytest.mark.long
def test_hostile_clients_do_not_slow_the_one_that_behaves(start: Any) -> None:
    _, port = start(*QUICK)
    times(port, 20)
    alone = times(port, 300)
    with hostile_clients(port, 1000, 200):
        beside = times(port, 600)
    alone += times(port, 300)
    print(f"p99 {1e3 * p99(alone):.1f} ms alone, {1e3 * p99(beside):.1f} ms beside them")
    assert p99(beside) <= 2 * p99(alone)


@pytest.mark.long
def test_few_files_are_enough_for_one_that_behaves(start: Any, tmp_path: Path) -> None:
    for files in (1024, 100):
        path = tmp_path / f"{files}.log"
        with path.open("w") as log:
            process, port = start(*QUICK, files=files, log=log)
            with hostile_clients(port, 1000, 200):
                began = time.monotonic()
                while time.monotonic() - began < 30:
                    times(port, 10)
            process.terminate()
            process.wait()
        lines = path.read_text().splitlines()
        assert 1 <= len(lines) <= 4, lines
        assert "the idlest are closed" in lines[0]


def test_many_clients_get_no_wrong_reply(start: Any, checkpoint: Path) -> None:
    _, port = start(*QUICK)
    task = SudokuTask()
    model, config = load_model(task, checkpoint, device="cpu")
    choose = random.Random(0)
    texts = [
        "".join(c if choose.random() < 0.3 else "." for c in "1234341221434321") for _ in "x" * 200
    ]
    x = torch.tensor([task.question(text, config) for text in texts])
    with torch.no_grad():
        best = model(x, max_steps=24).logits.topk(2).values
    # Digits that a question treats alike tie, and then rounding decides.
    clear = ((best[..., 0] - best[..., 1]).amin(1) > 1e-3).tolist()
    found = predict(model, x, max_steps=24)
    answers = [task.line(row) for row in (found.classes + 1).tolist()]
    known = [
        pair for pair, kept in zip(zip(texts, answers, strict=True), clear, strict=True) if kept
    ]
    assert len(known) > 50
    end = time.monotonic() + 60

    def client(number: int) -> int:
        order, count = random.Random(number), 0
        with closing(connect(port)) as connection:
            while time.monotonic() < end:
                text, answer = order.choice(known)
                status, body = ask(connection, text)
                assert (status, body["answer"]) == (200, answer)
                count += 1
        return count

    with ThreadPoolExecutor(64) as clients:
        counts = list(clients.map(client, range(64)))
    print(f"{sum(counts)} replies to 64 clients in 60 s")
    assert min(counts) > 0


@pytest.mark.long
def test_memory_is_flat_over_many_requests(start: Any) -> None:
    process, port = start(*QUICK)
    memory = []

    def client(number: int) -> None:
        choose = random.Random(number)
        connection = connect(port)
        for _ in range(250):
            kind = choose.randrange(8)
            if kind == 0:
                assert ask(connection, EASY)[0] == 200
            elif kind == 1:
                assert ask(connection, "5" * choose.randrange(2000))[0] == 400
            elif kind == 2:
                connection.request("POST", "/solve", choose.randbytes(choose.randrange(3000)), JSON)
                assert connection.getresponse().read()
            elif kind == 3:  # a question whose client has gone before the answer
                with socket.create_connection(("127.0.0.1", port)) as opened:
                    opened.sendall(QUESTION)
            elif kind == 4:  # a part of a head
                with socket.create_connection(("127.0.0.1", port)) as opened:
                    opened.sendall(b"GET /" + choose.randbytes(100).hex().encode())
            else:
                path, host = choose.choice(("/", "/health", "/metrics", "/x")), choose.choice("ab")
                connection.request(
                    "GET", path, headers={"host": {"a": "localhost"}.get(host, host)}
                )
                assert connection.getresponse().read()
        connection.close()

    with ThreadPoolExecutor(8) as clients:
        for turn in range(10):
            list(clients.map(client, range(8 * turn, 8 * turn + 8)))
            memory.append(resident(process.pid) / 1e6)
    print("MB after each 2,000 of 20,000 requests:", [round(size, 1) for size in memory])
    assert memory[-1] - memory[1] < 16


def resident(process: int) -> int:
    """Bytes of memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

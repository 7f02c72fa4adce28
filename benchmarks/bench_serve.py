"""Many clients of one service: continuous batching against whole batches, and malformed requests.

64 clients on loopback each ask for one puzzle after the other, half of them easy and half hard, of
the trained model in `results/`. A server of whole batches takes up to as many requests as
there are slots without waiting for more, and replies to all when the slowest is done. All servers
have the same budget for each puzzle, and take turns. SERVE_SECONDS, SERVE_TURNS, SERVE_PUZZLES and
SERVE_MALFORMED set how long and how many, for trials.
"""

import functools
import http.client
import json
import os
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import report
import torch
from timing import show
from torch import Tensor

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from tasks.puzzles.evaluate import Predictions, predict, solve_batch
from tasks.puzzles.puzzle import Puzzle
from tasks.runs import load_model
from tasks.serving.engine import Engine
from tasks.serving.server import Server, listen
from tasks.serving.service import Service
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask

pytestmark = pytest.mark.benchmark
CHECKPOINT = report.RESULTS / "sudoku" / "extreme-curriculum" / "model.safetensors"
SECONDS = report.setting_or("SERVE_SECONDS", 60)
TURNS = report.setting_or("SERVE_TURNS", 2)
PUZZLES = report.setting_or("SERVE_PUZZLES", 400)
MALFORMED = report.setting_or("SERVE_MALFORMED", 20_000)
CLIENTS, SLOTS, MAX_STEPS = 64, 32, 128
HEADERS = {"content-type": "application/json"}
TASK = SudokuTask()


class WholeBatches(Engine):
    """The baseline: a batch is filled, solved as a whole, and answered as a whole.

    Args:
        slots: Puzzles of a batch.
        compact: Let puzzles that have converged leave the computation, though not the batch.
    """

    def __init__(self, model: Any, slots: int = SLOTS, compact: bool = False):
        super().__init__(model, MAX_STEPS, slots, CLIENTS)
        model.solving.compact = compact
        self.line: queue.Queue[tuple[Tensor, Future[Predictions]] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def submit(self, x: Tensor, timeout: float, watch: Any = None) -> Future[Predictions]:
        future: Future[Predictions] = Future()
        self.line.put((x, future))
        return future

    def close(self) -> None:
        self.line.put(None)
        self.thread.join()
        self.model.solving.compact = True
        super().close()

    def _serve(self) -> None:
        while (first := self.line.get()) is not None:
            batch = [first]
            while len(batch) < self.max_batch and not self.line.empty():
                batch.append(self.line.get_nowait() or first)
            x = torch.stack([x for x, _ in batch])
            found, _ = solve_batch(self.model, x, max_steps=MAX_STEPS)
            for row, (_, future) in enumerate(batch):
                future.set_result(found.at(torch.tensor([row])))


@contextmanager
def served(engine: Engine, config: Any) -> Iterator[int]:
    """The port of a server in a thread of its own."""
    service = Service(TASK, config, engine, timeout=600.0, rate=1e9)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=Server(service).run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        service.draining = True
        thread.join()
    engine.close()


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, Any]:
    connection.request("POST", "/solve", body, HEADERS)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def load(port: int, texts: list[str], seconds: float) -> tuple[list[Any], float]:
    """What the clients saw, (seconds, puzzle, status, reply) each, and how long it all took."""
    began = time.perf_counter()
    order = random.Random(0)
    turns = iter([order.randrange(len(texts)) for _ in range(10**6)])
    lock = threading.Lock()

    def client(_: int) -> list[Any]:
        seen = []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while time.perf_counter() - began < seconds:
            with lock:
                number = next(turns)
            asked = time.perf_counter()
            status, reply = ask(connection, json.dumps({"puzzle": texts[number]}).encode())
            seen.append((time.perf_counter() - asked, number, status, reply))
        connection.close()
        return seen

    with ThreadPoolExecutor(CLIENTS) as clients:
        replies = [reply for seen in clients.map(client, range(CLIENTS)) for reply in seen]
    return replies, time.perf_counter() - began


@functools.cache
def prepared() -> tuple[Any, Any, list[Puzzle], list[str], list[bool]]:
    """The model, its configuration, the puzzles, what a set of them gets, and which are right."""
    model, config = load_model(TASK, CHECKPOINT, device="cpu")
    board = config.data.board  # type: ignore[attr-defined]
    easy = generate(PUZZLES // 2, board, (30, 34), seed=7)
    # The eighth on which our solver guesses most.
    minimal = generate(4 * PUZZLES, board, minimal=True, seed=7)
    hard = sorted(minimal, key=lambda puzzle: puzzle.rating)[-PUZZLES // 2 :]
    x, _ = TASK.encode(easy + hard, config)
    expected = predict(model, x, max_steps=MAX_STEPS)
    answers = [TASK.line(row) for row in (expected.classes + 1).tolist()]
    valid = TASK.is_valid(x, expected.classes, config).tolist()
    return model, config, easy + hard, answers, valid


SERVERS: dict[str, Callable[[Any], Engine]] = {
    f"continuous, {SLOTS} slots": lambda model: Engine(model, MAX_STEPS, SLOTS, CLIENTS),
    f"batches of {SLOTS}": WholeBatches,
    f"batches of {SLOTS}, compacted": lambda model: WholeBatches(model, compact=True),
    "batches of 8": lambda model: WholeBatches(model, slots=8),
    "one by one": lambda model: WholeBatches(model, slots=1),
}


def figures(name: str, turns: list[tuple[list[Any], float, float]]) -> dict[str, Any]:
    """What the clients of one server saw in its turns: (replies, seconds, processor seconds)."""
    _, _, puzzles, answers, valid = prepared()
    replies = [reply for turn in turns for reply in turn[0]]
    times = sorted(taken for taken, _, _, _ in replies)
    ok = [(number, reply) for _, number, status, reply in replies if status == 200]
    claimed = [(n, r) for n, r in ok if r["valid"]]
    return {
        "server": name,
        "replies": len(replies),
        "errors": len(replies) - len(ok),
        "wrong": sum(r["answer"] != puzzles[n].answer for n, r in claimed),
        # Where no valid answer is found, several digits may be as likely, and rounding decides.
        "other_answers": sum(r["answer"] != answers[n] for n, r in ok if valid[n] or r["valid"]),
        "valid": len(claimed) / len(ok),
        "puzzles_per_second": len(replies) / sum(seconds for _, seconds, _ in turns),
        "puzzles_per_cpu_second": len(replies) / sum(cpu for _, _, cpu in turns),
        "p50_seconds": times[len(times) // 2],
        "p99_seconds": times[min(int(len(times) * 0.99), len(times) - 1)],
        "mean_steps": statistics.fmean(r["steps"] for _, r in ok),
    }


def test_many_clients(benchmark: Any) -> None:
    model, config, puzzles, _, _ = prepared()
    texts = [puzzle.question for puzzle in puzzles]
    turns: dict[str, list[tuple[list[Any], float, float]]] = {name: [] for name in SERVERS}
    for name in [*SERVERS] * TURNS:
        with served(SERVERS[name](model), config) as port:
            cpu = time.process_time()
            replies, seconds = load(port, texts, SECONDS)
            turns[name].append((replies, seconds, time.process_time() - cpu))
    rows = [figures(name, turns[name]) for name in SERVERS]
    for row in rows:
        row["times_batches"] = row["puzzles_per_cpu_second"] / rows[1]["puzzles_per_cpu_second"]
    shown = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    show(f"{CLIENTS} clients", list(rows[0]), shown)
    about = {"clients": CLIENTS, "max_steps": MAX_STEPS, "seconds": SECONDS, "turns": TURNS}
    report.save("serve", "many clients", rows, **about, solver=str(model.solving.solver))
    benchmark.pedantic(lambda: None, rounds=1)
    assert all(row["errors"] == row["wrong"] == row["other_answers"] == 0 for row in rows)


def test_malformed_requests(benchmark: Any) -> None:
    model, config = load_model(TASK, CHECKPOINT, device="cpu")
    engine, memory, statuses = Engine(model, MAX_STEPS, SLOTS, CLIENTS), [], []
    choose = random.Random(0)
    with served(engine, config) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(MALFORMED):
            statuses.append(ask(connection, malformed(choose))[0])
            if number % (MALFORMED // 10) == MALFORMED // 10 - 1:
                memory.append(resident())
        connection.close()
    row = {
        "requests": MALFORMED,
        "statuses": {str(code): statuses.count(code) for code in sorted(set(statuses))},
        "megabytes": [round(size / 1e6, 1) for size in memory],
    }
    print(row)
    report.save("serve", "malformed", [row])
    benchmark.pedantic(lambda: None, rounds=1)
    assert all(400 <= code < 500 for code in statuses)
    assert memory[-1] - memory[0] < 16e6


def malformed(choose: random.Random) -> bytes:
    """No question: noise, JSON of other shapes, boards of other sizes, contradictions, far too
    much."""
    size = choose.randrange(1, 3000)
    digits = "".join(choose.choice(".123456789") for _ in range(size + 81))
    text = "".join(chr(choose.randrange(32, 0x2FFF)) for _ in range(size % 100))
    return choose.choice(
        [
            choose.randbytes(size),
            b"[" * size,
            b'{"a":' * size,
            b'{"puzzle": "' + b"1" * (10 * size) + b'"}',
            json.dumps({"puzzle": digits}).encode(),
            json.dumps({"puzzle": text}).encode(),
            json.dumps({"puzzle": "11" + "." * 79}).encode(),
            json.dumps({"puzzle": choose.choice([None, size, [text], {text: size}])}).encode(),
            json.dumps({text: digits[:81]}).encode(),
        ]
    )


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

"""The HTTP service, on small models with random weights."""

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("httpx2", reason="needs httpx2 for the test client")

from fastapi.testclient import TestClient

from tasks.maze.config import PRESETS as MAZES
from tasks.maze.task import MazeTask
from tasks.puzzles.config import GridConfig
from tasks.puzzles.evaluate import predict
from tasks.puzzles.task import GridTask
from tasks.serving.app import create_app
from tasks.serving.engine import Engine
from tasks.serving.middleware import BODY_SECONDS, MAX_BODY, Rates, _body, client_of
from tasks.serving.server import allowed_hosts
from tasks.serving.service import Service
from tasks.sudoku.config import PRESETS
from tasks.sudoku.task import SudokuTask

EASY = "1234341221.343.1"
BUDGET = 24
CONFIG = PRESETS["tiny"].changed(width=16, eval_max_steps=BUDGET)
JSON = {"content-type": "application/json"}


class Served:
    """A service and a client of it."""

    def __init__(self, task: GridTask[Any], config: GridConfig, **limits: Any):
        torch.manual_seed(0)
        self.model = config.build().eval()
        self.model.solving.solver = config.solve.evaluation_solver()  # type: ignore[union-attr]
        room = {name: limits.pop(name, 64) for name in ("max_batch", "max_waiting")}
        self.engine = Engine(self.model, BUDGET, **room)
        self.service = Service(task, config, self.engine, **({"rate": 1e6} | limits))
        app = create_app(self.service)
        self.client = TestClient(app, raise_server_exceptions=False)

    def solve(self, puzzle: str) -> Any:
        return self.client.post("/solve", json={"puzzle": puzzle})

    def hold(self) -> Callable[[], None]:
        """Make the network wait; returns what lets it go on."""
        inner, held = self.engine.module, [True]

        class Held(torch.nn.Module):
            def forward(self, *args: Any) -> Any:
                while held[0]:
                    time.sleep(0.001)
                return inner(*args)

        self.engine.module = Held()
        return lambda: held.__setitem__(0, False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Makes services, and ends them."""
    made: list[Served] = []

    def make(task: Any = None, config: GridConfig = CONFIG, **limits: Any) -> Served:
        served = Served(task or SudokuTask(), config, **limits)
        served.client.__enter__()
        made.append(served)
        return served

    yield make
    for served in made:
        served.client.__exit__()
        served.engine.close()


def puzzles(count: int) -> list[str]:
    """Texts with few clues, none of which contradict each other."""
    choose, clues = random.Random(0), EASY.replace(".", "2")
    found: set[str] = set()
    while len(found) < count:
        cells = choose.sample(range(16), 5)
        found.add("".join(clues[i] if i in cells else "." for i in range(16)))
    return sorted(found)


def test_answers_of_many_clients_are_those_of_predict(serve: Callable[..., Served]) -> None:
    served, texts = serve(max_batch=6), [t for t in puzzles(60) if valid_clues(t)]
    x = torch.tensor([SudokuTask().question(text, CONFIG) for text in texts])
    with torch.no_grad():
        best = served.model(x, max_steps=BUDGET).logits.topk(2).values
    # Digits that a question treats alike tie, and then rounding decides.
    clear = (best[..., 0] - best[..., 1]).amin(1) > 1e-3
    x, texts = x[clear], [text for text, kept in zip(texts, clear.tolist(), strict=True) if kept]
    assert len(texts) >= 10
    expected = predict(served.model, x, max_steps=BUDGET)
    with ThreadPoolExecutor(8) as clients:
        replies = list(clients.map(served.solve, texts))
    assert [reply.status_code for reply in replies] == [200] * len(texts)
    bodies = [reply.json() for reply in replies]
    lines = ["".join(str(c + 1) for c in row) for row in expected.classes.tolist()]
    assert [body["answer"] for body in bodies] == lines
    assert [body["converged"] for body in bodies] == expected.converged.tolist()
    assert {type(body["residual"]) for body in bodies} == {float}
    assert max(body["steps"] for body in bodies) <= BUDGET


def valid_clues(text: str) -> bool:
    try:
        SudokuTask().question(text, CONFIG)
    except ValueError:
        return False
    return True


def test_an_answer_is_judged_by_the_rules(serve: Callable[..., Served]) -> None:
    served = serve()
    body = served.solve(EASY).json()
    assert body.keys() == {"answer", "valid", "converged", "residual", "steps", "held_out"}
    assert body["held_out"] is None  # nobody has counted
    assert body["valid"] is False  # random weights know nothing
    full = "1234341221434321"
    task = SudokuTask()
    x = torch.tensor([task.question(EASY, CONFIG)])
    assert task.is_valid(x, torch.tensor([[int(c) - 1 for c in full]]), CONFIG).all()


def test_a_trajectory_ends_at_the_answer(serve: Callable[..., Served]) -> None:
    served = serve()
    reply = served.client.post("/trajectory", json={"puzzle": EASY.replace(".", "0")})
    body, plain = reply.json(), served.solve(EASY).json()
    assert body["question"] == EASY
    assert {key: body[key] for key in ("answer", "valid", "converged", "steps")} == {
        key: plain[key] for key in ("answer", "valid", "converged", "steps")
    }
    assert body["converged"]
    frames = body["frames"]
    assert len(frames) == body["steps"] + 1
    assert frames[-1]["cells"] == body["answer"]
    assert frames[0]["residual"] > 1000 * frames[-1]["residual"]
    assert all(re.fullmatch("[1-4]{16}", frame["cells"]) for frame in frames)
    assert all(re.fullmatch("[0-9]{16}", frame["confidence"]) for frame in frames)


def test_mazes_are_served_too(serve: Callable[..., Served]) -> None:
    config = MAZES["tiny"].changed(side=5, width=16)
    served = serve(MazeTask(), config)
    body = served.solve("S #  \n#   #\n# #  \n ##  \n   #G").json()
    assert re.fullmatch("[# SGo]{25}", body["answer"])
    refusal = served.solve("S" * 25)
    assert refusal.status_code == 400
    assert "exactly one start" in refusal.json()["error"]


def malformed(number: int) -> tuple[str, bytes, dict[str, str]]:
    """A request that no service should take, from a seed: path, body, headers."""
    choose = random.Random(number)
    noise = bytes(choose.randrange(256) for _ in range(choose.randrange(200)))
    text = "".join(chr(choose.randrange(32, 0x2FFF)) for _ in range(choose.randrange(40)))
    digits = "".join(choose.choice("0123456789.") for _ in range(choose.choice((15, 17, 81))))
    values: list[Any] = [None, 1, -0.0, True, [], {}, [EASY], {"puzzle": EASY}, 10**400]
    bodies: list[bytes] = [
        noise,
        b"",
        b"[" * choose.randrange(1, MAX_BODY),
        b'{"a":' * choose.randrange(1, 3000),
        b"9" * choose.randrange(4000, MAX_BODY),
        b'{"puzzle": NaN}',
        b'{"puzzle": "\\ud800"}',
        b'{"puzzle": "' + b"1" * choose.randrange(MAX_BODY, 4 * MAX_BODY) + b'"}',
        json.dumps({"puzzle": text}).encode(),
        json.dumps({"puzzle": digits}).encode(),
        json.dumps({"puzzle": "11" + "." * 14}).encode(),
        json.dumps({"puzzle": EASY, text: 1}).encode(),
        json.dumps({text: EASY}).encode(),
        json.dumps({"puzzle": choose.choice(values)}).encode(),
        json.dumps(choose.choice(values[:-2])).encode(),
        '{"puzzle": "é"}'.encode("latin-1"),
    ]
    body = choose.choice(bodies)
    return choose.choice(("/solve", "/trajectory")), body, JSON


def resident() -> int:
    """Bytes of memory of this process, and 0 where that cannot be read."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def test_malformed_requests_are_refused_in_flat_memory(serve: Callable[..., Served]) -> None:
    served = serve()
    for number in range(40):
        send(served, number)
    before = resident()
    for number in range(400):
        reply = send(served, number)
        assert 400 <= reply.status_code < 500, (number, reply.text)
        assert len(reply.json()["error"]) < 500
    assert resident() - before < 16e6
    assert served.engine.rows == 0
    assert served.solve(EASY).status_code == 200


def send(served: Served, number: int) -> Any:
    path, body, headers = malformed(number)
    return served.client.post(path, content=body, headers=headers)


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b'{"puzzle": "12"}', JSON, 400, "must have 16 (4x4) cells, got 2"),
        (b'{"puzzle": "x..............."}', JSON, 400, "Character 'x' at (row 1, column 1)"),
        (b'{"puzzle": 12}', JSON, 422, "puzzle: Input should be a valid string"),
        (b'{"puzzle": "12", "more": 1}', JSON, 422, "more: Extra inputs"),
        (b"{", JSON, 422, "The body: JSON decode error. Send JSON such as"),
        (b'{"puzzle": "12"}', {"content-type": "text/plain"}, 422, "application/json"),
        (b"1" * (MAX_BODY + 1), JSON, 413, "16384 bytes"),
    ],
)
def test_refusals_say_what_is_wrong(
    serve: Callable[..., Served], content: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    reply = serve().client.post("/solve", content=content, headers=headers)
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_a_body_without_a_length_is_limited_too(serve: Callable[..., Served]) -> None:
    pieces = (b"1" * 1000 for _ in range(100))
    reply = serve().client.post("/solve", content=pieces, headers=JSON)
    assert reply.status_code == 413
    assert reply.headers["connection"] == "close"


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr("tasks.serving.middleware.BODY_SECONDS", 0.01)

    async def never() -> Any:
        await asyncio.sleep(BODY_SECONDS)

    reply = asyncio.run(_body(never))
    assert not isinstance(reply, bytes)
    assert reply.status_code == 408


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_its_address_or_its_network_of_ipv6(address: str, client: str) -> None:
    assert client_of(address) == client


def test_each_address_has_a_rate() -> None:
    rates = Rates(2.0, clients=2)
    assert [rates.wait("a", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rates.wait("b", 0.0) == 0
    assert rates.wait("a", 0.25) == pytest.approx(0.25)
    assert rates.wait("a", 0.5) == 0
    assert rates.wait("c", 0.5) == 0
    assert list(rates.buckets) == ["a", "c"]  # the quietest is forgotten


def test_too_many_requests_are_refused(serve: Callable[..., Served]) -> None:
    served = serve(rate=0.5)
    assert served.solve(EASY).status_code == 200
    reply = served.solve(EASY)
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "2"
    assert served.client.get("/health").status_code == 200


def test_the_description_of_the_routes_has_the_same_limits(serve: Callable[..., Served]) -> None:
    served = serve(rate=0.5, hosts=frozenset({"testserver"}))
    reply = served.client.get("/openapi.json")
    paths = {"/solve", "/trajectory", "/about", "/health", "/metrics"}
    assert set(reply.json()["paths"]) == paths
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert served.client.get("/openapi.json").status_code == 429
    assert served.client.get("/openapi.json", headers={"host": "a.example"}).status_code == 421
    assert served.client.get("/redoc").status_code == 404


def test_what_can_be_got_has_a_head(serve: Callable[..., Served]) -> None:
    client = serve().client
    for path in ("/", "/page.js", "/about", "/docs", "/health", "/metrics", "/openapi.json"):
        head, got = client.head(path), client.get(path)
        assert head.status_code == got.status_code == 200
        assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head("/solve").status_code == client.get("/solve").status_code


@pytest.mark.parametrize(
    ("name", "address", "ours", "foreign"),
    [
        ("127.0.0.1", "127.0.0.1", "localhost", "evil.example"),
        ("127.0.0.1", "127.0.0.1", "LocalHost:8000", "localhost.evil.example"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:9", "127.0.0.1.evil.example:8000"),
        ("127.0.0.1", "127.0.0.1", "[::1]:8000", "0.0.0.0"),
        ("Mine.example", "192.0.2.7", "mine.example", "192.0.2.8"),
        ("Mine.example", "192.0.2.7", "192.0.2.7:80", ""),
        ("fe80::7", "fe80::7", "[fe80::7]:80", "fe80::7"),
    ],
)
def test_requests_for_other_hosts_are_refused(
    serve: Callable[..., Served], name: str, address: str, ours: str, foreign: str
) -> None:
    served = serve(hosts=allowed_hosts(name, address))
    for method, path in (("GET", "/"), ("GET", "/health"), ("HEAD", "/x"), ("POST", "/solve")):
        reply = served.client.request(method, path, headers={"host": foreign})
        assert reply.status_code == 421
        assert method == "HEAD" or f"The host '{foreign}' is not served" in reply.json()["error"]
    assert served.client.get("/health", headers={"host": ours}).status_code == 200


def test_a_service_for_all_addresses_takes_any_host() -> None:
    assert allowed_hosts("0.0.0.0", "0.0.0.0") is allowed_hosts("::", "::") is None


def test_a_full_queue_and_a_slow_answer(serve: Callable[..., Served]) -> None:
    served = serve(max_batch=1, max_waiting=1, timeout=1.0)
    let_go = served.hold()
    with ThreadPoolExecutor(2) as clients:
        slow = [clients.submit(served.solve, EASY) for _ in range(2)]
        while served.engine.pending < 2:
            time.sleep(0.001)
        full = served.solve(EASY)
        assert [future.result().status_code for future in slow] == [504, 504]
    assert full.status_code == 503
    assert full.headers["retry-after"] == "1"
    let_go()
    while served.engine.pending:
        time.sleep(0.001)
    assert served.solve(EASY).status_code == 200


def test_a_service_that_ends_refuses_what_is_new(serve: Callable[..., Served]) -> None:
    served = serve()
    served.service.draining = True
    assert served.solve(EASY).status_code == 503
    assert served.client.get("/health").status_code == 503


def test_metrics_count(serve: Callable[..., Served]) -> None:
    served = serve()
    steps = served.solve(EASY).json()["steps"]
    served.solve("1")
    served.client.get("/" + "x" * 50)
    text = served.client.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert figures['requests_total{path="/solve",status="200"}'] == "1"
    assert figures['requests_total{path="/solve",status="400"}'] == "1"
    assert figures['requests_total{path="other",status="404"}'] == "1"
    assert figures['solve_seconds_bucket{le="+Inf"}'] == figures["solve_seconds_count"] == "1"
    assert figures["solver_steps_total"] == str(steps)
    assert figures["network_rows_total"] == str(steps + 1)
    assert figures["puzzles_running"] == figures["puzzles_waiting"] == "0"

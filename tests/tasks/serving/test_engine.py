"""The engine that solves what arrives one by one, on small models with random weights."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import GridModel
from solvers import Run
from tasks.puzzles.config import ModelName
from tasks.puzzles.evaluate import Predictions, predict
from tasks.serving.engine import Engine, Refused
from tasks.sudoku.config import PRESETS

BUDGET = 32


class Gate(nn.Module):
    """A map that waits until it may go on, and can be told to fail."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.open, self.broken = inner, threading.Event(), False
        self.called = threading.Event()

    def forward(self, *args: Tensor) -> Tensor:
        self.called.set()
        self.open.wait()
        if self.broken:
            raise RuntimeError("out of memory")
        return self.inner(*args)


def model(name: ModelName = "attractor", solver: str = "broyden") -> GridModel:
    torch.manual_seed(0)
    config = PRESETS["tiny"].changed(model=name, width=16)
    built = config.build().double().eval()
    built.solving.solver = config.solve.evaluation_solver(solver)  # type: ignore[union-attr]
    return built


def questions(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand(count, 16, generator=generator) < 0.4
    return torch.randint(1, 5, (count, 16), generator=generator) * shown


@pytest.fixture
def gated() -> Iterator[tuple[Engine, Gate]]:
    """One slot, one place to wait, and a gate."""
    engine = Engine(model(), BUDGET, max_batch=1, max_waiting=1)
    gate = Gate(engine.module)
    engine.module = gate
    yield engine, gate
    gate.open.set()
    engine.close()


@pytest.mark.parametrize(
    ("name", "solver"),
    [("attractor", "broyden"), ("attractor", "picard"), ("reasoner", "anderson")],
)
def test_answers_are_those_of_a_set(name: ModelName, solver: str) -> None:
    x, network = questions(30), model(name, solver)
    with torch.no_grad():
        best = network(x, max_steps=BUDGET).logits.topk(2).values
    # Digits that a question treats alike tie, and then rounding decides.
    clear = best[..., 0] - best[..., 1] > 1e-3
    assert clear.float().mean() > 0.5
    expected = predict(network, x, max_steps=BUDGET)
    assert expected.converged.any()
    assert len(expected.num_steps.unique()) > 1
    engine = Engine(network, BUDGET, max_batch=7, max_waiting=30)
    with ThreadPoolExecutor(10) as clients:
        found = Predictions.join(
            list(clients.map(lambda row: engine.submit(row, timeout=60).result(), x))
        )
    engine.close()
    assert (found.classes == expected.classes)[clear].all()
    assert torch.equal(found.converged, expected.converged)
    assert (found.num_steps - expected.num_steps).abs().max() <= 1
    sure = expected.converged
    torch.testing.assert_close(found.residual[sure], expected.residual[sure], rtol=0.2, atol=0)


def test_solves_share_their_calls_of_the_network() -> None:
    x = questions(24)
    engine = Engine(model(), BUDGET, max_batch=8, max_waiting=24)
    for future in [engine.submit(row, timeout=60) for row in x]:
        future.result()
    engine.close()
    assert engine.rows > 3 * engine.calls
    assert engine.running == engine.pending == 0


def test_who_is_done_does_not_wait_for_its_company() -> None:
    x, network = questions(30), model()
    order = predict(network, x, max_steps=BUDGET).num_steps.argsort()
    engine = Engine(network, BUDGET, max_batch=8, max_waiting=8)
    gate = Gate(engine.module)
    engine.module = gate
    # While the first one starts the others wait, and then start together.
    first = engine.submit(x[0], timeout=60)
    gate.called.wait()
    quick, slow = (engine.submit(x[order[place]], timeout=60) for place in (0, -1))
    assert engine.running == 1
    seen: list[bool] = []
    quick.add_done_callback(lambda _: seen.append(slow.done()))
    gate.open.set()
    assert slow.result().num_steps > quick.result().num_steps
    first.result()
    engine.close()
    assert seen == [False]


def test_a_late_request_joins_a_running_solve() -> None:
    engine = Engine(model(), BUDGET, max_batch=2, max_waiting=0)
    sizes: list[int] = []
    inner = engine.module
    second: list[Future[Predictions]] = []

    class Notes(nn.Module):
        def forward(self, y: Tensor, y0: Tensor) -> Tensor:
            sizes.append(len(y))
            if len(sizes) == 3:
                second.append(engine.submit(questions(2)[1], timeout=60))
            return inner(y, y0)

    engine.module = Notes()
    engine.submit(questions(2)[0], timeout=60).result()
    second[0].result()
    engine.close()
    assert sizes[:3] == [1, 1, 1]
    assert 2 in sizes


def test_the_watch_sees_every_point() -> None:
    seen: list[tuple[float, Tensor]] = []
    engine = Engine(model(), BUDGET, max_batch=2, max_waiting=0)
    found = engine.submit(questions(1)[0], 60, lambda *point: seen.append(point)).result()
    engine.close()
    assert found.converged.all()
    assert len(seen) == found.num_steps[0] + 1
    assert seen[-1][0] == pytest.approx(found.residual[0].item(), rel=1e-4)
    assert seen[-1][1].shape == (16, 4)
    assert torch.equal(seen[-1][1].argmax(-1), found.classes[0])


def test_more_than_fit_are_refused(gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    x = questions(3)
    futures = [engine.submit(row, timeout=60) for row in x[:2]]
    with pytest.raises(Refused, match="2 puzzles are in line"):
        engine.submit(x[2], timeout=60)
    gate.open.set()
    assert all(len(future.result().classes) == 1 for future in futures)
    engine.submit(x[2], timeout=60).result()


def test_what_takes_too_long_leaves_its_slot(gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    late = engine.submit(questions(1)[0], timeout=0.0)
    gate.open.set()
    with pytest.raises(TimeoutError):
        late.result()
    engine.submit(questions(1)[0], timeout=60).result()


def test_a_puzzle_that_was_given_up_leaves_its_place_and_its_slot(
    gated: tuple[Engine, Gate],
) -> None:
    engine, gate = gated
    running = engine.submit(questions(1)[0], timeout=60)
    gate.called.wait()
    waiting = engine.submit(questions(1)[0], timeout=60)
    assert waiting.cancel()
    assert engine.pending == 1  # at once, though the network has not replied
    last = engine.submit(questions(2)[1], timeout=60)
    assert running.cancel()
    gate.open.set()
    steps = int(last.result().num_steps[0])
    assert engine.rows == 1 + steps + 1  # the solve that was given up saw one point
    engine.close()
    assert engine.running == engine.pending == 0


def test_one_thread_makes_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a solver need not be safe in threads to be served."""
    engine = Engine(model(), BUDGET, max_batch=4, max_waiting=30)
    threads: set[int] = set()
    inner, tell = engine.module, Run.tell

    def noted(run: Run, fy: Any) -> None:
        threads.add(threading.get_ident())
        tell(run, fy)

    class Notes(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            threads.add(threading.get_ident())
            return inner(*args)

    monkeypatch.setattr(Run, "tell", noted)
    engine.module = Notes()
    with ThreadPoolExecutor(10) as clients:
        list(clients.map(lambda row: engine.submit(row, timeout=60).result(), questions(30)))
    engine.close()
    assert len(threads) == 1


def test_a_failing_network_fails_its_requests_alone(gated: tuple[Engine, Gate]) -> None:
    engine, gate = gated
    gate.broken = True
    failed = engine.submit(questions(1)[0], timeout=60)
    gate.open.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        failed.result()
    gate.broken = False
    engine.submit(questions(1)[0], timeout=60).result()


def test_closing_finishes_what_was_taken_and_gives_the_model_back() -> None:
    network = model()
    before = network.solving.module  # type: ignore[union-attr]
    engine = Engine(network, BUDGET, max_batch=2, max_waiting=8)
    futures = [engine.submit(row, timeout=60) for row in questions(8)]
    engine.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(Refused, match="about to end"):
        engine.submit(questions(1)[0], timeout=60)
    assert network.solving.module is before  # type: ignore[union-attr]


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ValueError, match="no solve to serve"):
        Engine(PRESETS["tiny"].changed(model="transformer").build(), 8, 1, 1)
    with pytest.raises(ValueError, match=r"Robust cannot be stepped.* another `--solver`"):
        Engine(model(solver="robust"), 8, 1, 1)
    with pytest.raises(ValueError, match="`max_batch` must be an integer of at least 1, got 0"):
        Engine(model(), 8, 0, 1)

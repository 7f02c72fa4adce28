"""Many puzzles, several starts, a search, what is said of a model, and the files of the pages."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("httpx2", reason="needs httpx2 for the test client")

from fastapi.testclient import TestClient

from tasks import shipped
from tasks.checkpoints.checkpoint import NAME, Checkpoint
from tasks.maze.config import PRESETS as MAZES
from tasks.maze.task import MazeTask
from tasks.puzzles.evaluate import predict
from tasks.puzzles.reliability import Band
from tasks.puzzles.search import search, solve_from_starts
from tasks.runs import load_model
from tasks.serving.about import describe
from tasks.serving.app import PAGE, create_app
from tasks.serving.engine import Engine
from tasks.serving.middleware import MAX_BODY, Rates
from tasks.serving.schemas import MOST_ATTEMPTS, MOST_PUZZLES, MOST_STARTS
from tasks.serving.service import GUESSES, Service
from tasks.sudoku.board import Board, parse
from tasks.sudoku.config import PRESETS
from tasks.sudoku.examples import FAILS, FEW, HARD, NINE
from tasks.sudoku.solver import complete
from tasks.sudoku.task import SudokuTask

ROOT = Path(__file__).parents[3]
TASK = SudokuTask()
EXTREME = shipped.path_of("sudoku", "extreme")
EASY = "1234341221.343.1"
SMALL = PRESETS["tiny"].changed(width=16, eval_max_steps=24)
BUDGET = 128

Ask = Callable[..., Any]

ANSWER = {"answer", "valid", "converged", "residual", "steps", "held_out"}


@pytest.fixture(scope="module")
def trained() -> Any:
    return load_model(TASK, EXTREME, device="cpu")


@pytest.fixture(scope="module")
def extreme(trained: Any) -> Iterator[TestClient]:
    """A service of the model of the package."""
    model, config = trained
    engine = Engine(model, BUDGET, max_batch=16, max_waiting=64)
    about = describe(EXTREME, TASK.noun)
    service = Service(TASK, config, engine, timeout=60, rate=1e6, about=about)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client
    engine.close()


@pytest.fixture
def small() -> Iterator[Callable[..., tuple[TestClient, Service]]]:
    """Makes services of a small model with random weights, and ends them."""
    made: list[Service] = []

    def make(task: Any = TASK, config: Any = SMALL, **limits: Any) -> tuple[TestClient, Service]:
        torch.manual_seed(0)
        model = config.build().eval()
        model.solving.solver = config.solve.evaluation_solver()
        room = {name: limits.pop(name, 64) for name in ("max_batch", "max_waiting")}
        service = Service(task, config, Engine(model, 24, **room), **({"rate": 1e6} | limits))
        made.append(service)
        return TestClient(create_app(service), raise_server_exceptions=False), service

    yield make
    for service in made:
        service.engine.close()


def test_each_of_many_puzzles_has_a_verdict(extreme: TestClient) -> None:
    easy = extreme.get("/about").json()["examples"][0]["puzzle"]
    texts = [easy, "12", HARD, "55" + "." * 79, FAILS, easy]
    reply = extreme.post("/solve", json={"puzzles": texts})
    assert reply.status_code == 200
    body = reply.json()
    assert body["valid"] == 3
    assert ["error" in answer for answer in body["answers"]] == [0, 1, 0, 1, 0, 0]
    assert "must have 81 (9x9) cells, got 2" in body["answers"][1]["error"]
    assert "Digit 5 stands twice" in body["answers"][3]["error"]
    singles = [extreme.post("/solve", json={"puzzle": text}).json() for text in (easy, HARD)]
    for one, other in zip(singles, (body["answers"][0], body["answers"][2]), strict=True):
        assert one.keys() == other.keys() == ANSWER
        assert one["answer"] == other["answer"]
    assert [body["answers"][i]["valid"] for i in (0, 2, 4)] == [True, True, False]
    converged = {"low": 1e-6, "high": 1e-5, "puzzles": 570, "right": 570}
    held_out = [body["answers"][i]["held_out"] for i in (0, 4)]
    assert held_out[0] == converged
    assert held_out[1]["right"] < held_out[1]["puzzles"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"puzzles": []}, 422, "puzzles: List should have at least 1 item"),
        ({"puzzles": [EASY] * (MOST_PUZZLES + 1)}, 422, "at most 64 items"),
        ({"puzzles": "12"}, 422, "puzzles: Input should be a valid list"),
        ({"puzzles": [1]}, 422, "puzzles.0: Input should be a valid string"),
        ({"puzzles": [EASY], "puzzle": EASY}, 422, "puzzle: Extra inputs"),
        ({"puzzles": [EASY], "starts": 2}, 422, "starts: Extra inputs"),
        ({}, 422, "puzzle: Field required"),
        ({"puzzle": EASY, "starts": 0}, 422, "starts: Input should be greater than or equal to 1"),
        ({"puzzle": EASY, "starts": MOST_STARTS + 1}, 422, "less than or equal to 8"),
        ({"puzzle": EASY, "attempts": MOST_ATTEMPTS + 1}, 422, "less than or equal to 16"),
        ({"puzzle": EASY, "attempts": True}, 422, "attempts: Input should be a valid integer"),
        ({"puzzle": EASY, "starts": 2, "attempts": 1}, 400, "Give `starts` or `attempts`"),
        ({"puzzle": "1" * MAX_BODY}, 413, "16384 bytes"),
    ],
)
def test_limits_are_said_in_words(small: Ask, body: Any, status: int, message: str) -> None:
    reply = small()[0].post("/solve", json=body)
    assert reply.status_code == status
    assert message in reply.json()["error"]


def test_a_request_may_not_have_more_solves_than_the_service_takes(small: Ask) -> None:
    client, service = small(max_batch=1, max_waiting=2)
    for body in ({"puzzles": [EASY] * 4}, {"puzzle": EASY, "starts": 4}):
        reply = client.post("/solve", json=body)
        assert reply.status_code == 400
        assert "takes 3 puzzles at a time" in reply.json()["error"]
    assert client.post("/solve", json={"puzzles": [EASY] * 3}).status_code == 200
    assert service.engine.pending == 0


@pytest.mark.parametrize(
    "body",
    [{"puzzles": [EASY] * 3}, {"puzzle": EASY, "starts": 3}, {"puzzle": EASY, "attempts": 3}],
)
def test_what_is_not_answered_in_time_leaves_no_solve(small: Ask, body: dict[str, Any]) -> None:
    client, service = small(max_batch=2, timeout=0.3)
    inner, held = service.engine.module, [True]

    class Held(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            while held[0]:
                time.sleep(0.001)
            return inner(*args)

    service.engine.module = Held()
    assert client.post("/solve", json=body).status_code == 504
    held[0] = False
    deadline = time.monotonic() + 10
    while service.engine.pending and time.monotonic() < deadline:
        time.sleep(0.001)
    assert service.engine.pending == service.engine.running == 0
    rows = service.engine.rows
    time.sleep(0.05)
    assert service.engine.rows == rows  # nothing goes on


def test_further_solves_count_against_the_rate() -> None:
    rates = Rates(2.0)
    assert rates.wait("a", 0.0) == 0
    rates.charge("a", 7, 0.0)  # four at once, of which one is left: a debt of four
    assert rates.wait("a", 0.0) == pytest.approx(2.5)
    assert rates.wait("a", 2.0) == pytest.approx(0.5)
    assert rates.wait("a", 2.5) == 0
    assert rates.wait("b", 0.0) == 0


@pytest.mark.parametrize(
    "body",
    [{"puzzles": [EASY] * 8}, {"puzzle": EASY, "starts": 8}, {"puzzle": EASY, "attempts": 2}],
)
def test_who_asks_for_many_waits_for_the_next(small: Ask, body: dict[str, Any]) -> None:
    client, _ = small(rate=1.0)
    assert client.post("/solve", json=body).status_code == 200
    reply = client.post("/solve", json={"puzzle": EASY})
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) >= 2


def test_several_starts_are_those_of_the_evaluation(extreme: TestClient, trained: Any) -> None:
    """The same choice among the same number of starts, which are disturbed in the same way."""
    model, config = trained
    body = extreme.post("/solve", json={"puzzle": HARD, "starts": 8}).json()
    x = torch.tensor([TASK.question(HARD, config)])
    starts = solve_from_starts(
        model, x, max_steps=BUDGET, breadth=8, noise=1.0,
        valid=lambda x, classes: TASK.is_valid(x, classes, config),
    )  # fmt: skip
    assert body["starts"] == 8
    assert body["valid"] == bool(starts.valid.any())
    assert 1 <= body["agreeing"] <= 8
    alone = extreme.post("/solve", json={"puzzle": HARD}).json()
    assert body["steps"] > 4 * alone["steps"]
    assert body["answer"] == alone["answer"]


def test_a_search_finds_what_a_search_of_the_evaluation_does(
    extreme: TestClient, trained: Any
) -> None:
    model, config = trained
    alone = extreme.post("/solve", json={"puzzle": FAILS}).json()
    body = extreme.post("/trajectory", json={"puzzle": FAILS, "attempts": MOST_ATTEMPTS}).json()
    assert not alone["valid"]
    x = torch.tensor([TASK.question(FAILS, config)])
    found, _ = search(
        model, x, valid=lambda x, classes: TASK.is_valid(x, classes, config), assume=TASK.assume,
        max_steps=BUDGET, attempts=MOST_ATTEMPTS, guesses=GUESSES,
    )  # fmt: skip
    assert body["valid"]
    assert body["answer"] == TASK.line((found[-1][0] + 1).tolist())
    assert 1 <= body["attempts"] <= MOST_ATTEMPTS
    first = [frame["cells"] for frame in body["frames"][: BUDGET + 1]]
    assert body["frames"][-1]["cells"] == body["answer"] not in first
    assert body["answered"] == len(body["frames"]) - 1
    assert body["held_out"] is None  # no guesses were counted
    assert alone["held_out"] is not None


def test_an_unsuccessful_search_leaves_the_first_answer(small: Ask) -> None:
    client, _ = small()  # random weights know nothing
    alone = client.post("/solve", json={"puzzle": EASY}).json()
    body = client.post("/solve", json={"puzzle": EASY, "attempts": 2}).json()
    assert not body["valid"]
    assert {key: body[key] for key in ("answer", "converged")} == {
        key: alone[key] for key in ("answer", "converged")
    }
    assert body["attempts"] == 2
    assert body["steps"] > alone["steps"]


def test_mazes_take_starts_but_no_guesses(small: Ask) -> None:
    client, _ = small(MazeTask(), MAZES["tiny"].changed(side=5, width=16))
    maze = "S #   #   ## #   ##     G"
    assert client.get("/about").json()["searches"] is False
    refusal = client.post("/solve", json={"puzzle": maze, "attempts": 1})
    assert refusal.status_code == 400
    assert "a maze cannot show any of its answer. Ask for `starts`" in refusal.json()["error"]
    assert client.post("/solve", json={"puzzle": maze, "starts": 3}).json()["starts"] == 3


def test_a_trajectory_names_the_frame_of_its_answer(extreme: TestClient, trained: Any) -> None:
    body = extreme.post("/trajectory", json={"puzzle": FAILS, "candidates": True}).json()
    assert not body["converged"]
    frame = body["frames"][body["answered"]]
    assert frame["cells"] == body["answer"]
    assert frame["residual"] == pytest.approx(body["residual"])
    assert frame["residual"] == min(each["residual"] for each in body["frames"])
    assert body["seconds"] > 0
    # The most likely symbol of each cell is the one that the frame shows.
    shares = torch.tensor([int(frame["candidates"][i : i + 2]) for i in range(0, 2 * 729, 2)])
    shown = torch.tensor([int(cell) - 1 for cell in frame["cells"]])
    table = shares.view(81, 9)
    assert (table[range(81), shown] == table.max(1).values).all()
    assert (table.sum(1) - 100).abs().max() <= 5
    assert len(predict(trained[0], torch.zeros(1, 81, dtype=torch.long), max_steps=1)) == 4


def test_candidates_of_a_large_board_are_refused(small: Ask) -> None:
    client, service = small(MazeTask(), MAZES["tiny"].changed(side=30, width=16))
    maze = "S" + " " * 898 + "G"
    body = {"puzzle": maze, "candidates": True}
    assert "The candidates of 900 cells" in client.post("/trajectory", json=body).json()["error"]
    assert service.engine.rows == 0


def test_about_is_the_card_of_the_model(extreme: TestClient) -> None:
    about = extreme.get("/about").json()
    assert (about["name"], about["parameters"], about["side"]) == ("extreme", 37185, 9)
    assert about["card"]["Scores"].startswith("82.1 % of the 1000 exactly right")
    assert about["tolerance"] == 1e-5
    assert (about["symbols"], about["blank"]) == ("123456789", ".")
    assert [example["name"] for example in about["examples"]] == ["easy", *NINE]


@pytest.mark.parametrize(
    ("task", "name", "run"), [("sudoku", "extreme", "extreme-deep"), ("maze", "hard", "hard")]
)
def test_the_reliability_in_a_card_is_the_one_that_was_measured(
    task: str, name: str, run: str
) -> None:
    result = json.loads((ROOT / "results" / task / run / "result.json").read_text())
    measured = [
        (row["residual"], row["puzzles"], round(row["puzzles"] * row["exact_accuracy"]))
        for row in result["eval"]["accuracy_by_residual"]
    ]
    told = [
        (f"{row['low']:.0e} to {row['high']:.0e}", row["puzzles"], row["right"])
        for row in shipped.reliability(shipped.path_of(task, name))
    ]
    assert told == measured


def test_a_run_is_described_by_what_it_left(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    checkpoint = Checkpoint({}, {"task": "sudoku", "history": [{"test_exact": 0.25}]})
    checkpoint.save(folder / NAME)
    rows = [{"residual": "1e-06 to 1e-05", "puzzles": 8, "exact_accuracy": 0.75}]
    (folder / "result.json").write_text(json.dumps({"eval": {"accuracy_by_residual": rows}}))
    known = describe(folder / NAME, "puzzle")
    assert known == {
        "name": "mine",
        "card": {"Scores": "25.0% of held-out puzzles exactly right"},
        "reliability": [Band(1e-6, 1e-5, 8, 6)],
    }
    for damaged in ("{", "[]", '{"eval": {"accuracy_by_residual": [{"residual": "x"}]}}'):
        (folder / "result.json").write_text(damaged)
        assert describe(folder / NAME, "puzzle")["reliability"] == []


def test_examples_are_what_they_are_called(extreme: TestClient) -> None:
    assert 81 - FEW.count(".") == int(next(name for name in NINE if "clues" in name).split()[0])
    body = extreme.post("/solve", json={"puzzles": list(NINE.values())}).json()
    verdicts = dict(zip(NINE.values(), body["answers"], strict=True))
    assert verdicts[FEW]["converged"]
    assert verdicts[HARD]["converged"]
    assert not verdicts[FAILS]["converged"]


@pytest.mark.parametrize("puzzle", NINE.values(), ids=NINE)
def test_examples_have_one_solution(puzzle: str) -> None:
    assert complete("typed", parse(puzzle), Board.of(9)).rating >= 0


@pytest.mark.parametrize(("path", "script"), [("/", "page.js"), ("/docs", "docs.js")])
def test_the_pages_load_nothing_from_elsewhere(small: Ask, path: str, script: str) -> None:
    client, _ = small()
    reply = client.get(path)
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    named = re.findall(r'(?:src|href)="([^"]+)"', reply.text)
    links = {"docs", "./", "openapi.json"}
    assert sorted(set(named) - links) == sorted(["icon.png", "page.css", script])
    assert all(client.get(f"/{name.lstrip('./')}").status_code == 200 for name in named)
    texts = [file for file in PAGE.iterdir() if file.suffix in (".html", ".css", ".js")]
    assert len(texts) == 8
    for file in texts:
        text = re.sub(
            r"^ *//.*$|http://www.w3.org/2000/svg", "", file.read_text(), flags=re.MULTILINE
        )
        forbidden = r"https?:|//\w|@import|innerHTML|insertAdjacentHTML|eval\(|<script>| style="
        assert not re.search(forbidden, text), file
    for name in re.findall(r'from "\./([^"]+)"', "".join(file.read_text() for file in texts)):
        assert client.get(f"/{name}").headers["content-type"].startswith("text/javascript")
    assert client.get("/../service.py").status_code == 404
    assert client.get("/%2e%2e/service.py").status_code == 404

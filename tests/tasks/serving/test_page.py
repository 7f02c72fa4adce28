"""The page of the service in a headless Chromium, with the trained model of the package.

Needs the extra `browser` and a Chromium or Chrome of the system: see CONTRIBUTING.md.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs the extra `browser`")
pytest.importorskip("fastapi", reason="needs the extra `serve`")

from playwright import sync_api as playwright

from tasks.runs import load_model
from tasks.serving.about import describe
from tasks.serving.engine import Engine
from tasks.serving.server import Server, listen
from tasks.serving.service import Service
from tasks.sudoku.examples import FAILS
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask

pytestmark = pytest.mark.slow

CHECKPOINT = Path(__file__).parents[3] / "tasks/sudoku/weights/extreme.safetensors"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60
playwright.expect.set_options(timeout=SECONDS * 1000)
CELLS = "#board input"
SOLVE = ("solve", "starts", "search")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """BROWSER_PICTURES names a folder for screenshots, for somebody to look at."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    # A container's root has no sandbox, and little shared memory.
    options = ["--no-sandbox", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=options)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the service listens."""
    task = SudokuTask()
    model, config = load_model(task, CHECKPOINT, device="cpu")
    engine = Engine(model, 128, max_batch=4, max_waiting=8)
    about = describe(CHECKPOINT, task.noun)
    service = Service(task, config, engine, timeout=SECONDS, rate=1e6, about=about)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=Server(service).run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        service.draining = True
        thread.join()
    engine.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, loaded; whatever it complains of in the console fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 980})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append((message.type, message.text)))
    page.on("pageerror", lambda error: complaints.append(("exception", str(error))))
    page.on("dialog", lambda dialog: (complaints.append(("dialog", "")), dialog.dismiss()))
    page.set_default_timeout(SECONDS * 1000)
    page.goto(address)
    page.wait_for_selector(CELLS)
    yield page
    context.close()
    # A refusal is a reply like any other, but a browser notes it.
    expected = re.compile("Failed to load resource: .* status of 4(00|22)")
    assert [text for _, text in complaints if not expected.match(text)] == []


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("BROWSER_PICTURES")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def cells(page: Any) -> str:
    """What stands on the board, blanks as points."""
    return "".join(page.locator(CELLS).nth(i).input_value() or "." for i in range(81))


def paste(page: Any, text: str, cell: int = 0) -> None:
    """Paste a text into a cell of the board."""
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.locator(CELLS).nth(cell).focus()
    page.keyboard.press("Control+V")


def solve(page: Any, button: str = "solve") -> str:
    """Ask, and wait for the answer; returns what the page says of it."""
    page.click(f"#{button}")
    page.wait_for_selector("#player:not([hidden])")
    return page.locator("#status").text_content()


def example(page: Any, name: str) -> str:
    """Take an example; returns it."""
    page.locator("#examples button", has_text=name).click()
    return cells(page)


def finish(page: Any) -> None:
    """Let the solve play to its end."""
    page.select_option("#speed", "16")
    playwright.expect(page.locator("#moment")).to_have_text(re.compile(": the answer$"))


def test_a_pasted_puzzle_converges_to_its_solution(page: Any) -> None:
    config = load_model(SudokuTask(), CHECKPOINT, device="cpu")[1]
    (puzzle,) = generate(1, config.data.board, (34, 35), seed=11)  # type: ignore[attr-defined]
    paste(page, "\n".join(puzzle.question[i : i + 9] for i in range(0, 81, 9)), cell=40)
    assert cells(page) == puzzle.question
    said = solve(page)
    assert re.fullmatch(r"Valid, converged after \d+ steps, in \d+\.\d\d s\.", said)
    page.keyboard.press("p")
    page.locator("#step").press("Home")
    for _ in range(6):
        page.keyboard.press(".")
    assert re.fullmatch(r"Step 6 of \d+, residual \d\.\de-\d", page.text_content("#moment"))
    picture(page, "solving")
    page.keyboard.press("p")
    finish(page)
    assert cells(page) == puzzle.answer
    assert page.locator("#status.solved").count() == 1
    assert re.search(r"of \d+ held-out puzzles .* \d+ were right", page.text_content("#trust"))
    given = page.locator("#board .given").count()
    assert given == sum(symbol != "." for symbol in puzzle.question)
    assert page.locator("#board .broken").count() == 0
    picture(page, "solved")
    # The steps can be looked at again, and the residual falls from the first to the last.
    last = page.input_value("#step")
    page.locator("#step").press("Home")
    assert page.text_content("#moment").startswith(f"Step 0 of {last}")
    assert cells(page) != puzzle.answer
    curve = page.locator("#curve").get_attribute("points").split()
    heights = [float(point.split(",")[1]) for point in curve]
    assert len(heights) == int(last) + 1
    assert heights[0] < 60 < 140 < heights[-1]
    # The tolerance is a line of its own, and the solve ends below it.
    assert "tolerance 1e-5" in page.text_content("#chart")
    line = float(page.locator("#chart .tolerance").get_attribute("y1"))
    assert heights[-2] < line < heights[-1]
    # The answer can be taken along.
    page.click("#copy")
    playwright.expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == puzzle.answer


def test_one_types_into_the_board(page: Any) -> None:
    page.locator(CELLS).nth(0).focus()
    page.keyboard.type("12x0.3")  # a letter is no symbol; 0 and the point are blanks
    assert cells(page)[:6] == "12..3."
    page.keyboard.press("ArrowDown")
    page.keyboard.type("7")
    assert cells(page)[14] == "7"
    for key in ("ArrowLeft", "ArrowUp", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)  # from the upper edge to the lower one
    page.keyboard.type("8")
    assert cells(page)[76] == "8"
    page.keyboard.press("Home")
    page.keyboard.type("4")
    page.keyboard.press("Backspace")  # clears the cell it is in, and moves back
    page.keyboard.press("Backspace")
    assert cells(page)[72:] == "....8...."
    page.click("#clear")
    assert cells(page) == "." * 81


def test_a_broken_rule_is_red_while_typing(page: Any) -> None:
    page.locator(CELLS).nth(0).focus()
    page.keyboard.type("5.5")
    assert page.locator("#board .broken").count() == 2
    assert page.locator('#board [aria-invalid="true"]').count() == 2
    picture(page, "broken")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    assert page.locator("#board .broken").count() == 0


def test_a_text_of_another_length_is_said_so(page: Any) -> None:
    paste(page, "123456789" * 3)
    alert = page.locator("#error:not([hidden])")
    assert alert.text_content() == "The board has 81 cells, and the text 27."
    paste(page, "7")  # a single one goes where it is pasted
    assert cells(page) == "7" + "." * 80


def test_examples_show_their_clues_at_once(page: Any) -> None:
    names = page.locator("#examples button").all_text_contents()
    assert names[0] == "easy"
    assert names[-1] == "not solved"
    for name in names:
        assert 17 <= sum(cell != "." for cell in example(page, name)) <= 40
        assert page.locator("#player").is_hidden()
    said = solve(page)
    assert said.startswith("Not valid, not converged after 128 steps")
    finish(page)
    assert page.locator("#board .broken").count() > 0
    picture(page, "not-solved")


def test_what_one_solve_does_not_find_a_search_does(page: Any) -> None:
    assert example(page, "not solved") == FAILS
    assert re.search(r"\d of 8 starts agree", solve(page, "starts"))
    assert re.match(r"Valid, .* attempt \d+ with guesses", solve(page, "search"))
    finish(page)
    found = cells(page)
    assert all(clue in (".", cell) for clue, cell in zip(FAILS, found, strict=True))
    assert page.locator("#board .broken").count() == 0
    assert page.input_value("#answer") == found


def test_the_solve_can_be_paused_and_stepped(page: Any) -> None:
    example(page, "easy")
    solve(page)
    page.keyboard.press("p")
    assert page.text_content("#play") == "Play"
    at = int(page.input_value("#step"))
    page.keyboard.press(".")
    page.keyboard.press(".")
    page.keyboard.press(",")
    assert int(page.input_value("#step")) == at + 1
    page.click("#back")
    page.wait_for_timeout(400)
    assert int(page.input_value("#step")) == at
    page.click("#play")
    assert page.text_content("#play") == "Pause"
    finish(page)
    assert page.text_content("#play") == "Play"
    # A point of the plot is a step, too.
    page.locator("#chart").click(position={"x": 80, "y": 60})
    assert int(page.input_value("#step")) < 5


def test_candidates_are_shown_of_the_cell_that_is_looked_at(page: Any) -> None:
    example(page, "easy")
    solve(page)
    page.keyboard.press("p")
    page.locator("#step").press("Home")
    page.locator(CELLS).nth(13).hover()
    assert page.text_content("#where") == "Row 2, column 5, at step 0: candidates in %"
    shares = [int(re.sub(r"\D", "", text)) for text in page.locator(".share").all_text_contents()]
    assert len(shares) == 9
    assert 95 <= sum(shares) <= 105
    page.locator(CELLS).nth(0).focus()
    assert page.text_content("#where").startswith("Row 1, column 1")
    picture(page, "candidates")


def test_the_header_says_what_the_model_is(page: Any) -> None:
    assert page.text_content("#title") == "Sudoku by the Attractor Model \u201cextreme\u201d"
    assert "37,185 parameters" in page.text_content("#model")
    assert "82.1 % of the 1000 exactly right" in page.text_content("#card")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("123", "81"), ("55" + "." * 79, "5"), ("x" * 81, "x")],
)
def test_what_is_no_puzzle_is_refused_in_words(page: Any, text: str, sentence: str) -> None:
    example(page, "easy")
    solve(page)
    page.click("summary")
    page.fill("#puzzle", text)
    assert page.locator("#player").is_hidden()
    page.click("#solve")
    alert = page.locator("#error:not([hidden])")
    alert.wait_for()
    assert sentence in alert.text_content()
    # Nothing of the old solution is left beside it.
    assert page.locator("#player").is_hidden()
    assert page.locator("#verdict").is_hidden()
    assert cells(page).replace(".", "") == ("55" if sentence == "5" else "")
    picture(page, f"refused-{sentence}")
    # A puzzle after that is taken as ever, and the message goes.
    example(page, "easy")
    assert page.locator("#error").is_hidden()


def test_hostile_text_stays_text(page: Any) -> None:
    hostile = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
    page.click("summary")
    page.fill("#puzzle", hostile)
    page.click("#solve")
    page.locator("#error:not([hidden])").wait_for()
    assert page.locator("img, main script").count() == 0
    # Neither does it become HTML where a service repeats it, as in a frame or a message.
    page.route(
        "**/trajectory",
        lambda route: route.fulfill(status=400, json={"error": hostile}),
    )
    page.click("#solve")
    playwright.expect(page.locator("#error")).to_have_text(hostile)
    assert page.locator("img, main script").count() == 0


def test_a_reply_that_makes_no_sense_is_said_so(page: Any) -> None:
    example(page, "easy")
    page.route("**/trajectory", lambda route: route.fulfill(status=200, body="no JSON"))
    page.click("#solve")
    alert = page.locator("#error:not([hidden])")
    alert.wait_for()
    assert alert.text_content().startswith("The service does not answer: ")
    assert all(page.locator(f"#{button}").is_enabled() for button in SOLVE)


def test_the_description_is_shown_without_help_from_elsewhere(page: Any, address: str) -> None:
    page.goto(f"{address}/docs")
    page.wait_for_selector("#routes h2")
    text = page.text_content("body")
    for what in ("POST /solve", "GET /about", "puzzles", "rms(f(y) - y) / rms(y)"):
        assert what in text
    described = json.loads(page.request.get(f"{address}/openapi.json").text())
    assert page.text_content("#title") == described["info"]["title"]

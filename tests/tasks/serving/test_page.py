"""The page of the service in a headless Chromium, with the trained model of the package.

Needs the extra `browser` and a Chromium or Chrome of the system: see CONTRIBUTING.md.
"""

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
from tasks.serving.app import Service
from tasks.serving.engine import Engine
from tasks.serving.server import Server, listen
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask

pytestmark = pytest.mark.slow

CHECKPOINT = Path(__file__).parents[3] / "tasks/sudoku/weights/extreme.safetensors"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60


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
    engine = Engine(model, 64, max_batch=4, max_waiting=8)
    service = Service(task, config, engine, timeout=SECONDS, rate=1e6)
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
    context = browser.new_context(viewport={"width": 1100, "height": 820})
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append((message.type, message.text)))
    page.on("pageerror", lambda error: complaints.append(("exception", str(error))))
    page.on("dialog", lambda dialog: (complaints.append(("dialog", "")), dialog.dismiss()))
    page.set_default_timeout(SECONDS * 1000)
    page.goto(address)
    page.wait_for_selector("#board span")
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
    return "".join(span or " " for span in page.locator("#board span").all_text_contents())


def test_a_pasted_puzzle_converges_to_its_solution(page: Any) -> None:
    config = load_model(SudokuTask(), CHECKPOINT, device="cpu")[1]
    (puzzle,) = generate(1, config.data.board, (34, 35), seed=11)  # type: ignore[attr-defined]
    page.fill("#puzzle", puzzle.question)
    page.click("#solve")
    # The page allows no script from elsewhere, so waiting is for text, not for an expression.
    on_its_way = re.compile(r"Step ([5-9]|1\d) of \d+, residual \d\.\de")
    playwright.expect(page.locator("#status")).to_have_text(on_its_way)
    picture(page, "solving")
    page.wait_for_selector("#status.solved")
    assert cells(page) == puzzle.answer
    assert re.search(r"Valid, converged after \d+ steps", page.locator("#status").text_content())
    given = page.locator("#board .given").count()
    assert given == sum(symbol != "." for symbol in puzzle.question)
    picture(page, "solved")
    # The steps can be looked at again, and the residual falls from the first to the last.
    last = page.input_value("#step")
    page.locator("#step").press("Home")
    assert page.locator("#status").text_content().startswith(f"Step 0 of {last}")
    assert cells(page) != puzzle.answer
    curve = page.locator("#curve").get_attribute("points").split()
    heights = [float(point.split(",")[1]) for point in curve]
    assert len(heights) == int(last) + 1
    assert heights[0] < 5 < 25 < heights[-1]


def test_the_example_is_solved(page: Any) -> None:
    page.click("#example")
    assert len(page.input_value("#puzzle").split("\n")) == 9
    page.click("#solve")
    page.wait_for_selector("#status.solved")
    page.click("#clear")
    assert page.input_value("#puzzle") == ""
    assert cells(page).strip() == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("123", "81"), ("55" + "." * 79, "5"), ("x" * 81, "x")],
)
def test_what_is_no_puzzle_is_refused_in_words(page: Any, text: str, sentence: str) -> None:
    page.fill("#puzzle", text)
    page.click("#solve")
    alert = page.locator("#error:not([hidden])")
    alert.wait_for()
    assert sentence in alert.text_content()
    assert page.locator("#status").text_content() == ""
    picture(page, f"refused-{sentence}")
    # A puzzle after that is taken as ever, and the message goes.
    page.click("#example")
    assert page.locator("#error").is_hidden()


def test_hostile_text_stays_text(page: Any) -> None:
    hostile = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
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
    page.fill("#puzzle", "." * 81)
    page.route("**/trajectory", lambda route: route.fulfill(status=200, body="no JSON"))
    page.click("#solve")
    alert = page.locator("#error:not([hidden])")
    alert.wait_for()
    assert alert.text_content().startswith("The service does not answer: ")
    assert page.locator("#solve").is_enabled()

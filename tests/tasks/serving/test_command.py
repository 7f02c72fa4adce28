"""The command `serve` from end to end: a process, its signals, its page and its errors."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.sudoku.__main__ import main
from tasks.sudoku.config import PRESETS

ROOT = Path(__file__).parents[3]
EASY = "1234341221.343.1"
CONFIG = PRESETS["tiny"].changed(width=16, eval_max_steps=24)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as a file."""
    torch.manual_seed(0)
    weights = {f"module.{name}": tensor for name, tensor in CONFIG.build().state_dict().items()}
    meta = {"task": "sudoku", "preset": "tiny", "config": CONFIG.to_json()}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    Checkpoint({"average": weights}, meta).save(path)
    return path


@pytest.fixture
def process(checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port."""
    command = [sys.executable, "-m", "tasks.sudoku", "serve", "--checkpoint", str(checkpoint)]
    options = ["--port", "0", "--rate", "1000", "--max-batch", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert started.stdout is not None
    match = re.search(r"on http://127\.0\.0\.1:(\d+)$", started.stdout.readline().strip())
    assert match
    yield started, int(match[1])
    started.kill()
    started.wait()
    started.stdout.close()


def ask(port: int, path: str, puzzle: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = None if puzzle is None else json.dumps({"puzzle": puzzle})
    connection.request("GET" if puzzle is None else "POST", path, body, JSON if body else {})
    reply = connection.getresponse()
    status, text = reply.status, reply.read().decode()
    connection.close()
    return status, text


def test_sigterm_answers_what_runs_and_refuses_what_comes(
    process: tuple[subprocess.Popen[str], int],
) -> None:
    started, port = process
    with ThreadPoolExecutor(60) as clients:
        running = [clients.submit(ask, port, "/solve", EASY) for _ in range(60)]
        while '"/solve",status="200"} ' not in ask(port, "/metrics")[1]:
            time.sleep(0.005)
        started.send_signal(signal.SIGTERM)
        while ask(port, "/health")[0] == 200:
            time.sleep(0.005)
        late = ask(port, "/solve", EASY)
        statuses = [future.result()[0] for future in running]
    assert late[0] == 503
    assert "about to end" in late[1]
    assert set(statuses) <= {200, 503}  # 503: it came after the signal
    assert statuses.count(200) > 1
    assert started.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "between 0, which takes any, and 65535: got 70000"),
        (["--host", "no.such.host.invalid"], "Cannot listen on 'no.such.host.invalid'"),
        (["--max-batch", "0"], "`max_batch` must be an integer of at least 1, got 0"),
        (["--max-steps", "0"], "`max_steps` must be an integer of at least 1, got 0"),
        (["--rate", "nan"], "`rate` must be finite and above 0, got nan"),
        (["--timeout", "-1"], "`timeout` must be finite and above 0, got -1.0"),
    ],
)
def test_bad_options_have_a_clear_error(
    checkpoint: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--checkpoint", str(checkpoint), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_page_in_a_browser(process: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no headless browser: none of {', '.join(names)} is installed")
    options = ["--headless", "--no-sandbox", f"--user-data-dir={tmp_path}", "--dump-dom"]
    page = subprocess.run(
        [browser, *options, "--virtual-time-budget=3000", f"http://127.0.0.1:{process[1]}/"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "A model of sudoku, 4 \u00d7 4, with at most" in page
    assert page.count("<span") == 16

"""The command `serve` from end to end: a process, its signals, its page and its errors."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

from tasks.serving.server import listen
from tasks.sudoku.__main__ import main

EASY = "1234341221.343.1"
JSON = {"content-type": "application/json"}


@pytest.fixture
def process(start: Any) -> tuple[subprocess.Popen[str], int]:
    """The command in a process of its own, and its port."""
    return start("--rate", "1000", "--max-batch", "1")


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


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_every_address_is_every_address() -> None:
    """Of IPv4 too, as the page says of `--host ::`."""
    with listen("::", 0) as listener:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, listener.getsockname()[1]), timeout=10).close()


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
    assert page.count('aria-label="Row') == 16

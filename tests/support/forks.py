"""Code that runs where nothing but torch is loaded, without a start of torch for each."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

ROOT = Path(__file__).parents[2]
# Each code runs in a fork of one process, as the main program of a process of its own would.
SERVER = """
import json, os, sys, tempfile, traceback
import torch
for line in sys.stdin:
    code, arguments = json.loads(line)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if os.fork() == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv[1:] = arguments
            status = 0
            try:
                exec(code, {"__name__": "__main__"})
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.wait()[1])
        out.seek(0)
        err.seek(0)
        print(json.dumps([status, out.read(), err.read()]), flush=True)
"""


class Ended(NamedTuple):
    """What became of a process."""

    returncode: int
    stdout: str
    stderr: str


class Run(Protocol):
    """Run code in a new process, in which warnings are errors."""

    def __call__(self, code: str, *arguments: str) -> Ended: ...


@contextmanager
def forks() -> Iterator[Run]:
    """Start the process that is forked; it ends with the block."""
    command = [sys.executable, "-W", "error", "-c", SERVER]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(code: str, *arguments: str) -> Ended:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([code, arguments]) + "\n")
            process.stdin.flush()
            return Ended(*json.loads(process.stdout.readline()))

        yield run

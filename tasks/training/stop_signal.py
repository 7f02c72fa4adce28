"""Turns Ctrl-C and SIGTERM into a flag that a loop can check between batches."""

import signal
import threading
from pathlib import Path


class Interrupted(Exception):
    """Training was stopped by a signal; `path` is the checkpoint to continue from."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.path = path


class StopSignal:
    """Sets `requested` on the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once.

    Args:
        second_stops: Whether a second one does. Not under `torchrun`, which passes on the Ctrl-C
            that a process has had already.
    """

    def __init__(self, second_stops: bool):
        self.second_stops = second_stops

    def __enter__(self) -> "StopSignal":
        self.requested = False
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        if self.second_stops:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

"""Turns Ctrl-C, SIGTERM and SIGHUP into a flag that a loop can check between batches."""

import signal
import threading
from pathlib import Path


class Interrupted(Exception):
    """Training was stopped by a signal; `path` is the checkpoint to continue from."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.path = path


# A terminal that is closed sends SIGHUP, sometimes more than once. Windows has none.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopSignal:
    """Sets `requested` on the first of these signals; a second one stops at once if it is Ctrl-C.

    A signal that was ignored before stays so: `nohup` ignores SIGHUP.

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
            for number in SIGNALS:
                # None: a handler that Python did not set, and could not set again.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        if self.second_stops and signal.SIGINT in self.previous:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

"""A solver that calls its function, turned into one that is asked for its next point."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor


class PeerMap(Protocol):
    """The map as a peer calls it."""

    def __call__(self, z: Tensor, *, probe: bool = False) -> Tensor:
        """Evaluate a point: one that it tries, or a probe of the derivative."""
        ...


Drive = Callable[[PeerMap], object]


class _Stopped(BaseException):
    """Unwinds the peer; no `except Exception` of its own can swallow it."""


class Conversation:
    """One run of a peer, paused at every point that it wants evaluated.

    The peer runs in a thread of its own, but never at the same time as its listener: what
    looks like a call of `f` to the peer hands the point over and waits for the answer. All
    else that happens in `f`, its errors too, so stays where the caller is.

    Attributes:
        question: The point that the peer wants evaluated; None once it has ended.
        probing: Whether the point is but a probe of the derivative.

    Args:
        drive: Starts the peer on the function it is given; its return value is ignored, since
            the listener has seen every point.
        failures: What the peer raises when it cannot go on: the end of the conversation.
            Anything else is a mistake, and is raised to the listener.
    """

    def __init__(self, drive: Drive, failures: tuple[type[Exception], ...]):
        self._questions: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        # The current stream is the thread's, and the peer must queue its work on ours.
        stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(
            target=self._run, args=(drive, failures, stream), daemon=True
        )
        self._thread.start()
        self.question: Tensor | None = None
        self.probing = False
        self._listen()

    def reply(self, answer: Tensor) -> None:
        """Answer the question and wait for the next one."""
        self._answers.put(answer)
        self._listen()

    def close(self) -> None:
        """End the peer where it stands."""
        if self._thread.is_alive():
            self._answers.put(None)
            self._thread.join()

    def _listen(self) -> None:
        self.question, self.probing, error = self._questions.get()
        if error is not None:
            raise error

    def _ask(self, z: Tensor, *, probe: bool = False) -> Tensor:
        self._questions.put((z, probe, None))
        answer = self._answers.get()
        if answer is None:
            raise _Stopped
        return answer

    def _run(self, drive: Drive, failures: tuple[type[Exception], ...], stream: Any) -> None:
        mistake = None
        try:
            with torch.no_grad(), torch.cuda.stream(stream):
                drive(self._ask)
        except (_Stopped, *failures):
            pass
        except BaseException as error:
            mistake = error
        self._questions.put((None, False, mistake))

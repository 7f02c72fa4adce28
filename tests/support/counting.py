"""A `Progress` that keeps what it is told."""

from tasks.output import Progress


class Counting(Progress):
    """The parts of some work.

    Attributes:
        parts: The name of each, the steps that it was said to have, and those that were done.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[str, int, int]] = []

    def begin(self, name: str, total: int) -> None:
        self.parts.append((name, total, 0))

    def advance(self, count: int = 1) -> None:
        name, total, done = self.parts[-1]
        self.parts[-1] = name, total, done + count

    def require_whole(self) -> None:
        """Check that every part was done, and no more than it."""
        assert self.parts
        for name, total, done in self.parts:
            assert done == total > 0, name

"""A progress that remembers what it was told."""

from tasks.output import Progress


class Counted(Progress):
    """Attributes: `parts`: the name, the total and the steps done of each part that began."""

    def __init__(self) -> None:
        self.parts: list[list[object]] = []

    def begin(self, name: str, total: int) -> None:
        self.parts.append([name, total, 0])

    def advance(self, count: int = 1) -> None:
        self.parts[-1][2] += count  # type: ignore[operator]

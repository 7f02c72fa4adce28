"""What it costs a processor to make the batches of a run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reading:
    """How fast the processes of a run get their batches, each on one core.

    The training loop makes a batch and then trains on it, so that both take their time.

    Attributes:
        way: What they do, in words.
        rate: Tokens that one core makes per second.
        own_rows: Whether each process makes its own rows alone, or all of them.
    """

    way: str
    rate: float
    own_rows: bool

    def seconds(self, tokens: float, processes: int) -> float:
        """Time for so many tokens of the batches of all processes."""
        return tokens / (processes if self.own_rows else 1) / self.rate

"""Language modelling: train, evaluate, generate, and study equilibrium internalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.lm.writing import Writer

__all__ = ["load"]


def __dir__() -> list[str]:
    return __all__


def load(name: str | Path = "small", *, device: str = "auto") -> Writer:
    """A trained model, ready to write; see `tasks.lm.writing.load`.

    Args:
        name: A model that comes with the package, the folder of a run, or a checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """
    from tasks.extras import explaining

    with explaining("`tasks.lm.load`"):
        from tasks.lm.writing import load

        return load(name, device=device)

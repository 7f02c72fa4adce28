"""Files of weights that other projects have written as pickles, read without running their code."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.checkpoints.file import FAULTS, CheckpointError, brief


def read_pickle(path: Path, advice: str, classes: Sequence[Any] = ()) -> Any:
    """The content of a pickle of tensors and plain values.

    Args:
        path: The file.
        advice: What to do if it cannot be read, for the error.
        classes: What else it may hold; see `torch.serialization.add_safe_globals`.

    Raises:
        CheckpointError: It cannot be read, or only by running code in it.
    """
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (*FAULTS, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is no file of weights that can be read without running code in it "
            f"({brief(error)}). {advice}"
        ) from error

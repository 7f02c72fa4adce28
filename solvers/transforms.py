"""Transforms under which a loop cannot read its verdicts: say what to do instead."""

import contextlib
from collections.abc import Iterator

from torch import Tensor

from solvers.torch_internals import is_legacy_batchedtensor, records_without_values


def check_readable(y: Tensor) -> None:
    """Raise an error for tensors whose values cannot be read, before torch fails on them."""
    if is_legacy_batchedtensor(y):
        raise NotImplementedError(
            "`vectorize=True` and `is_grads_batched=True` of torch.autograd hide the residuals, "
            "which the solver must read. Leave them off, or use torch.func.jacrev, jacfwd, hessian."
        )
    if records_without_values():
        raise NotImplementedError(
            "torch.func.linearize and make_fx record operations without values, but the solver "
            "must read its residuals. Use torch.func.jvp, and vmap over it for several tangents."
        )


@contextlib.contextmanager
def no_loop_under_vmap(name: str) -> Iterator[None]:
    """Turn the error of a loop that reads its verdicts under `vmap` into advice."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("vmap: "):
            raise NotImplementedError(
                f"{name} does not work under torch.vmap, whose samples have no visible verdicts. "
                "Call `implicit.fixed_point` with another backward mode, such as 'exact', or make "
                "the mapped dim part of the batch."
            ) from error
        raise

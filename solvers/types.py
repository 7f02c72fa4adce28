"""Every tensor type of the solvers, declared once.

Inside a solver a batch of states is one matrix, a row per sample: `Flat`. The annotations
are documentation and are never checked at run time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from solvers.counted_map import CountedMap
    from solvers.status import SampleStatus

# What the user sees: a tensor whose leading dims are the batch, or a pytree of such tensors.
State: TypeAlias = Any
Map: TypeAlias = Callable[..., State]

Flat: TypeAlias = Float[Tensor, " sample entry"]
PerSample: TypeAlias = Float[Tensor, " sample"]
Mask: TypeAlias = Bool[Tensor, " sample"]
Index: TypeAlias = Int[Tensor, " kept"]
# A window of past differences, and the small matrices built from it.
Window: TypeAlias = Float[Tensor, " sample slot entry"]
Small: TypeAlias = Float[Tensor, " sample slot slot"]

# Called after each judged point with the map, the verdicts, the point and the value there.
Watch: TypeAlias = Callable[["CountedMap", "SampleStatus", Flat, Flat], object]

# What a solver remembers of samples that have stopped, as pairs of sample index and memory.
Memory: TypeAlias = list[tuple[Index, Any]]

"""The backward modes of this library, one file each. Importing this package registers them."""

from implicit.modes.exact import Exact
from implicit.modes.jacobian_free import JacobianFree
from implicit.modes.neumann import Neumann
from implicit.modes.phantom import Phantom
from implicit.modes.shine import Shine
from implicit.modes.unrolled import Unrolled
from implicit.modes.warm_start import WarmStart

__all__ = ["Exact", "JacobianFree", "Neumann", "Phantom", "Shine", "Unrolled", "WarmStart"]

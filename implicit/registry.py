"""The registry of backward modes, by name."""

from implicit.base import BackwardMode
from solvers.registry import Registry

MODES: Registry[BackwardMode] = Registry("backward mode", BackwardMode, "backward_modes")
register = MODES.register
backward_modes = MODES.names
get_backward = MODES.get

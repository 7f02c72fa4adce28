"""Networks: the Attractor wrapper, the blocks it is built from, grid models and reasoners."""

from models.attractor import Attractor, AttractorOutput
from models.blocks import (
    Block,
    Convolution,
    SelfAttention,
    SwiGLU,
    TokenMixer,
    UnitAttention,
)
from models.grid import GridAttractor, GridOutput, GridSpec, GridTransformer, Layout
from models.reasoners import Cycle, PathNoise, Reasoner, TwoModuleCycle

GridModel = GridAttractor | GridTransformer | Reasoner

__all__ = [
    "Attractor",
    "AttractorOutput",
    "Block",
    "Convolution",
    "Cycle",
    "GridAttractor",
    "GridModel",
    "GridOutput",
    "GridSpec",
    "GridTransformer",
    "Layout",
    "PathNoise",
    "Reasoner",
    "SelfAttention",
    "SwiGLU",
    "TokenMixer",
    "TwoModuleCycle",
    "UnitAttention",
]

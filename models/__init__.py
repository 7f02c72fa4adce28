"""Networks: the Attractor wrapper, the blocks it is built from, and grid models."""

from models.attractor import Attractor, AttractorOutput
from models.blocks import Block, SelfAttention, SwiGLU, UnitAttention
from models.grid import GridAttractor, GridOutput, GridSpec, GridTransformer

__all__ = [
    "Attractor",
    "AttractorOutput",
    "Block",
    "GridAttractor",
    "GridOutput",
    "GridSpec",
    "GridTransformer",
    "SelfAttention",
    "SwiGLU",
    "UnitAttention",
]

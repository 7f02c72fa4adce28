"""Models of grid puzzles: an Attractor, and a fixed-depth Transformer of the same size.

Legend: B batch, T cells, S symbols, D width. Symbols are 1..S, and 0 is a blank.
"""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit import BackwardMode, Solution
from models.attractor import Attractor
from models.blocks import Block, SelfAttention, UnitAttention
from solvers import FixedPointSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSpec:
    """The shape of a grid model.

    Attributes:
        units: One tuple per kind of unit (row, column, box, ...): the unit of each cell.
        num_symbols: S.
        layout: "candidates": a token per pair of cell and symbol, equivariant to renaming
            symbols and to permuting cells within their units. "cells": a token per cell,
            with learned row, column and box embeddings, and heads that see one kind of unit
            each.
        width: D.
        backbone_blocks: Blocks that make the proposal.
        refiner_blocks: Blocks of the map that is solved.
        num_heads: Heads of the "cells" layout.
    """

    units: tuple[tuple[int, ...], ...]
    num_symbols: int
    layout: Literal["candidates", "cells"] = "candidates"
    width: int = 32
    backbone_blocks: int = 1
    refiner_blocks: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        if self.layout not in ("candidates", "cells"):
            raise ValueError(f"`layout` must be 'candidates' or 'cells', got {self.layout!r}.")

    def block(self) -> Block:
        """One block of the layout's kind."""
        units = torch.tensor(self.units)
        if self.layout == "candidates":
            return Block(UnitAttention(self.width, units), self.width)
        mixer = SelfAttention(self.width, self.num_heads, _peer_masks(units, self.num_heads))
        return Block(mixer, self.width, expansion=8 / 3)

    def blocks(self, count: int) -> nn.Sequential:
        """Several."""
        return nn.Sequential(*(self.block() for _ in range(count)))

    def encoder(self) -> nn.Module:
        """From symbols to tokens."""
        return CandidateEncoder(self) if self.layout == "candidates" else CellEncoder(self)

    def head(self) -> nn.Module:
        """From tokens to logits, shape (B, T, S)."""
        if self.layout == "candidates":
            return nn.Sequential(nn.Linear(self.width, 1), nn.Flatten(2))
        return nn.Linear(self.width, self.num_symbols)


@dataclasses.dataclass(frozen=True)
class GridOutput:
    """Logits and what stands behind them.

    Attributes:
        logits: Shape (B, T, S).
        state: The state they were read from; the next segment's `start`.
        solution: The evidence; None for a model without a solve.
    """

    logits: Float[Tensor, "B T S"]
    state: Tensor
    solution: Solution | None


class GridAttractor(nn.Module):
    """Fill in a grid by solving for the fixed point of a refiner.

    The proposal is added to the state at every update (the paper's additive injection), and
    proposal and equilibrium are read by the same head.

    Args:
        spec: The shape.
        solver: See `implicit.fixed_point`.
        backward: See `implicit.fixed_point`.
        max_steps: Budget of updates; a single call may override it.

    References:
        Solve the Loop: Attractor Models for Language and Reasoning, arXiv:2605.12466.
    """

    def __init__(
        self,
        spec: GridSpec,
        solver: str | FixedPointSolver = "picard",
        backward: str | BackwardMode = "phantom",
        max_steps: int = 64,
    ):
        super().__init__()
        backbone = nn.Sequential(spec.encoder(), spec.blocks(spec.backbone_blocks))
        refiner = AdditiveInjection(spec.blocks(spec.refiner_blocks))
        self.attractor = Attractor(backbone, refiner, solver, backward, max_steps=max_steps)
        self.head = spec.head()

    def forward(
        self,
        x_BT: Int[Tensor, "B T"],
        *,
        start: Tensor | None = None,
        max_steps: int | None = None,
    ) -> GridOutput:
        """Solve a batch of grids, from the proposal or from an earlier state."""
        out = self.attractor(x_BT, start=start, max_steps=max_steps)
        return GridOutput(self.head(out.value), out.value, out.solution)


class GridTransformer(nn.Module):
    """The baseline: as many blocks of the same kind and width, each with its own weights.

    Takes and ignores the attractor's `start` and `max_steps`, so that both train through one
    loop.
    """

    def __init__(self, spec: GridSpec):
        super().__init__()
        depth = spec.backbone_blocks + spec.refiner_blocks
        self.body = nn.Sequential(spec.encoder(), spec.blocks(depth))
        self.head = spec.head()

    def forward(
        self,
        x_BT: Int[Tensor, "B T"],
        *,
        start: Tensor | None = None,
        max_steps: int | None = None,
    ) -> GridOutput:
        """One pass."""
        state = self.body(x_BT)
        return GridOutput(self.head(state), state, None)


class AdditiveInjection(nn.Module):
    """The refiner (y, y0) -> body(y + y0)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, y: Tensor, y0: Tensor) -> Tensor:
        """One update."""
        return self.body(y + y0)


class CandidateEncoder(nn.Module):
    """A token per pair of cell and symbol: is the cell blank, given as this, or as another?"""

    symbols: Tensor

    def __init__(self, spec: GridSpec):
        super().__init__()
        self.embedding = nn.Embedding(3, spec.width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.register_buffer("symbols", torch.arange(1, spec.num_symbols + 1), persistent=False)

    def forward(self, x_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T S D"]:
        """Embed."""
        x_BT1 = x_BT[..., None]
        status = torch.where(x_BT1 == self.symbols, 1, torch.where(x_BT1 == 0, 0, 2))
        return self.embedding(status)


class CellEncoder(nn.Module):
    """A token per cell: its symbol, plus one learned embedding per unit it belongs to."""

    units: Tensor

    def __init__(self, spec: GridSpec):
        super().__init__()
        self.symbol = nn.Embedding(spec.num_symbols + 1, spec.width)
        self.places = nn.ModuleList(nn.Embedding(max(k) + 1, spec.width) for k in spec.units)
        for embedding in (self.symbol, *self.places):
            nn.init.normal_(embedding.weight, std=0.5)  # type: ignore[arg-type]
        self.register_buffer("units", torch.tensor(spec.units), persistent=False)

    def forward(self, x_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embed."""
        places = zip(self.places, self.units, strict=True)
        return self.symbol(x_BT) + sum(embed(unit) for embed, unit in places)


def _peer_masks(units: Int[Tensor, "kinds T"], num_heads: int) -> Tensor:
    """Heads in turn see each kind of unit, then all peers; shape (H, T, T), True where seen."""
    same = units[:, :, None] == units[:, None, :]
    kinds = [*same, same.any(0)]
    return torch.stack([kinds[head % len(kinds)] for head in range(num_heads)])


GridModel = GridAttractor | GridTransformer

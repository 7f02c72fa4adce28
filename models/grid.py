"""Models of grid puzzles: an Attractor, and a fixed-depth Transformer of the same size.

Legend: B batch, T cells, S symbols, D width. Symbols are 1..S, and 0 is a blank.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from implicit import BackwardMode, FixedPointLayer, Solution
from models.attractor import Attractor
from models.blocks import Block, Convolution, PlainNorm, TokenMixer, UnitAttention
from solvers import FixedPointSolver
from solvers.types import State

# How many numbers of a state a CPU takes through the blocks at a time. Their activations, several
# times as many, should stay in its cache: larger parts take longer for each grid.
CPU_NUMBERS = 2**18

TokenLayout = Literal["candidates", "cells", "image", "attention", "mixer"]
Halting = Literal["none", "right", "q-learning"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSpec:
    """The shape of a grid model: what a cell may hold, and how tokens exchange information.

    Attributes:
        num_symbols: S, the symbols an answer may have.
        side: Cells are the `side` x `side` squares of a board, row by row.
        units: One tuple per kind of unit (row, column, box, ...): the unit of each cell.
            "candidates" and "cells" need them.
        num_inputs: Symbols a question may have; by default S and a blank.
        layout: "candidates": a token per pair of cell and symbol, equivariant to renaming
            symbols and to permuting cells within their units. All others have a token per
            cell. "cells": learned row, column and box embeddings, and heads that see one
            kind of unit each. "image": 3 x 3 convolutions. "attention": full attention with
            rotary positions, as in TRM and HRM. "mixer": MLPs across tokens, as in TRM-MLP.
            The last two are as published: norms, embeddings, heads and initial weights.
        width: D.
        backbone_blocks: Blocks that make the proposal.
        refiner_blocks: Blocks of the map that is solved.
        num_heads: Heads, where there is attention.
        expansion: Hidden width of the MLPs over D; by default 2 for "candidates" and "image",
            8/3 for the others.
        cycles: How often TRM and EqR update the reasoning for each update of the answer.
        puzzle_tokens: Tokens before the cells, for "attention" and "mixer": 16 in TRM, one in
            HRM, none in EqR. See `models.published.PublishedEncoder`.

    Raises:
        ValueError: Unknown layout, or one whose units are missing, or that has no such tokens.
    """

    num_symbols: int
    side: int
    units: tuple[tuple[int, ...], ...] = ()
    num_inputs: int | None = None
    layout: TokenLayout = "candidates"
    width: int = 32
    backbone_blocks: int = 1
    refiner_blocks: int = 2
    num_heads: int = 4
    expansion: float | None = None
    cycles: int = 6
    puzzle_tokens: int = 0

    def __post_init__(self) -> None:
        if self.layout not in get_args(TokenLayout):
            known = ", ".join(repr(name) for name in get_args(TokenLayout))
            raise ValueError(f"`layout` must be one of {known}, got {self.layout!r}.")
        if self.layout in ("candidates", "cells") and not self.units:
            raise ValueError(
                f"The layout {self.layout!r} needs `units`, which this puzzle does not have. Use "
                "'image', 'attention' or 'mixer'."
            )
        if self.puzzle_tokens and not self.as_published:
            raise ValueError(
                f"The layout {self.layout!r} has no `puzzle_tokens`, got {self.puzzle_tokens}. Use "
                "'attention' or 'mixer'."
            )

    @property
    def num_cells(self) -> int:
        """The number T of cells."""
        return self.side**2

    @property
    def num_tokens(self) -> int:
        """Tokens of the puzzle and, unless the layout is "candidates", of its cells."""
        return self.puzzle_tokens + self.num_cells

    @property
    def as_published(self) -> bool:
        """Whether norms, encoder, head and initial weights are those of TRM, HRM and EqR."""
        return self.layout in ("attention", "mixer")

    def mixer(self) -> nn.Module:
        """Build the module by which tokens exchange information in one block."""
        # On the CPU whatever the default device: a model on "meta" can still be counted.
        units = torch.tensor(self.units, device="cpu")
        match self.layout:
            case "candidates":
                return UnitAttention(self.width, units)
            case "image":
                return Convolution(self.width, self.side)
            case "mixer":
                # As published: the next multiple of 256 hidden numbers.
                hidden = 256 * math.ceil(round(8 / 3 * self.num_tokens) / 256)
                return TokenMixer(self.num_tokens, hidden / self.num_tokens)
        from models.attention import SelfAttention  # which the other layouts do without

        if self.layout == "attention":
            return SelfAttention(self.width, self.num_heads, rotary=True)
        return SelfAttention(self.width, self.num_heads, _peer_masks(units, self.num_heads))

    def block(self) -> Block:
        """Build one block of the layout's kind."""
        usual = 2.0 if self.layout in ("candidates", "image") else 8 / 3
        if not self.as_published:
            return Block(self.mixer(), self.width, self.expansion or usual)
        from models.published import lecun_

        norms = PlainNorm(-2 if self.layout == "mixer" else -1), PlainNorm()
        block = Block(self.mixer(), self.width, self.expansion or usual, norms)
        lecun_(block)
        return block

    def blocks(self, count: int) -> nn.Sequential:
        """Build so many blocks that are each used once in a pass."""
        return nn.Sequential(*(self.block() for _ in range(count)))

    def network(self, count: int) -> nn.Sequential:
        """Build so many blocks that a solve calls many times."""
        return CacheSizedSequential(*(self.block() for _ in range(count)))

    def encoder(self) -> nn.Module:
        """Build the module from symbols to tokens."""
        if self.as_published:
            from models.published import PublishedEncoder

            inputs = self.num_inputs or self.num_symbols + 1
            return PublishedEncoder(inputs, self.width, self.puzzle_tokens)
        return CandidateEncoder(self) if self.layout == "candidates" else CellEncoder(self)

    def head(self) -> nn.Module:
        """Build the module from tokens to logits, shape (B, T, S)."""
        if self.layout == "candidates":
            return nn.Sequential(nn.Linear(self.width, 1), nn.Flatten(2))
        if self.as_published:
            from models.published import PublishedHead

            return PublishedHead(self.width, self.num_symbols, self.puzzle_tokens)
        return nn.Linear(self.width, self.num_symbols)


@dataclasses.dataclass(frozen=True)
class GridOutput:
    """The logits of a pass, and the state and the evidence behind them.

    Attributes:
        logits: Shape (B, T, S).
        state: The state they were read from; the next segment's `start`.
        solution: The evidence; None for a model without a solve.
        halt: Shape (B,): logit of "the answer is right"; None without a halting head. Of
            Q-learning it is the value of stopping here.
        q_continue: Shape (B,): logit of the value of going on; None without Q-learning.
        q_next: `halt` and `q_continue` after one more segment, without a gradient; None except
            in training by Q-learning.
    """

    logits: Float[Tensor, "B T S"]
    state: State
    solution: Solution | None
    halt: Tensor | None = None
    q_continue: Tensor | None = None
    q_next: tuple[Tensor, ...] | None = None


class GridAttractor(nn.Module):
    """Fill in a grid by solving for the fixed point of a refiner.

    The proposal is added to the state at every update (the paper's additive injection), and
    proposal and equilibrium are read by the same head.

    Args:
        spec: The shape.
        solver: See `implicit.fixed_point`.
        backward: See `implicit.fixed_point`.
        max_steps: Budget of updates; a single call may override it.
        start_noise: In training, a fresh grid starts at the proposal plus normal noise of
            this standard deviation.

    References:
        Solve the Loop: Attractor Models for Language and Reasoning, arXiv:2605.12466.
    """

    def __init__(
        self,
        spec: GridSpec,
        solver: str | FixedPointSolver = "picard",
        backward: str | BackwardMode = "phantom",
        max_steps: int = 64,
        start_noise: float = 0.0,
    ):
        super().__init__()
        backbone = nn.Sequential(spec.encoder(), spec.blocks(spec.backbone_blocks))
        refiner = AdditiveInjection(spec.network(spec.refiner_blocks))
        self.attractor = Attractor(
            backbone, refiner, solver, backward, max_steps=max_steps, start_noise=start_noise
        )
        self.head = spec.head()

    def forward(
        self,
        x_BT: Int[Tensor, "B T"],
        *,
        start: Tensor | None = None,
        fresh: Bool[Tensor, " B"] | None = None,
        max_steps: int | None = None,
    ) -> GridOutput:
        """Solve a batch of grids, from the proposal or from an earlier state.

        Args:
            x_BT: Symbols.
            start: The state to start from; by default the proposal.
            fresh: Grids that start at the proposal all the same.
            max_steps: Budget of this call.
        """
        out = self.attractor(x_BT, start=start, fresh=fresh, max_steps=max_steps)
        return GridOutput(self.read(out.value), out.value, out.solution)

    def read(self, state: Tensor) -> Float[Tensor, "B T S"]:
        """The logits of a state."""
        return self.head(state)

    @property
    def solving(self) -> FixedPointLayer:
        """The layer that solves: its solver may be replaced after training."""
        return self.attractor.refiner

    def problem(self, x_BT: Int[Tensor, "B T"]) -> tuple[Tensor, tuple[Tensor]]:
        """Where a solve starts, and the arguments of its map."""
        proposal = self.attractor.backbone(x_BT)
        return proposal, (proposal,)


class GridTransformer(nn.Module):
    """The baseline: as many blocks of the same kind and width, each with its own weights.

    Takes and ignores the attractor's `start`, `fresh` and `max_steps`, so that both train
    through one loop.
    """

    solving: None = None

    def __init__(self, spec: GridSpec):
        super().__init__()
        depth = spec.backbone_blocks + spec.refiner_blocks
        self.body = nn.Sequential(spec.encoder(), spec.blocks(depth))
        self.head = spec.head()

    def forward(self, x_BT: Int[Tensor, "B T"], **_: Any) -> GridOutput:
        """Answer a batch of grids in one pass."""
        state = self.body(x_BT)
        return GridOutput(self.head(state), state, None)


class CacheSizedSequential(nn.Sequential):
    """A sequence of modules that splits large batches on a CPU where no gradient is recorded.

    For modules in which samples cannot influence each other.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the modules to the whole batch, part by part."""
        run = super().forward
        # This comes first, since an exported program must not depend on the size of the batch.
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not input.is_cpu:
            return run(input)
        at_once = max(1, CPU_NUMBERS * len(input) // max(1, input.numel()))
        if len(input) <= at_once:
            return run(input)
        return torch.cat([run(part) for part in input.split(at_once)])


class AdditiveInjection(nn.Module):
    """The refiner (y, y0) -> body(y + y0)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, y: Tensor, y0: Tensor) -> Tensor:
        """Apply the body to the sum of state and proposal."""
        return self.body(y + y0)


class CandidateEncoder(nn.Module):
    """A token per pair of cell and symbol: is the cell blank, this symbol, or another one?"""

    symbols: Tensor

    def __init__(self, spec: GridSpec):
        super().__init__()
        self.embedding = nn.Embedding(3, spec.width)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.register_buffer("symbols", torch.arange(1, spec.num_symbols + 1), persistent=False)

    def forward(self, x_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T S D"]:
        """Embed the pairs of cells and symbols."""
        x_BT1 = x_BT[..., None]
        status = torch.where(x_BT1 == self.symbols, 1, torch.where(x_BT1 == 0, 0, 2))
        return self.embedding(status)


class CellEncoder(nn.Module):
    """A token per cell: the embedding of its symbol plus one for each unit that it belongs to."""

    units: Tensor

    def __init__(self, spec: GridSpec):
        super().__init__()
        self.symbol = nn.Embedding(spec.num_inputs or spec.num_symbols + 1, spec.width)
        self.places = nn.ModuleList(nn.Embedding(max(k) + 1, spec.width) for k in spec.units)
        for embedding in (self.symbol, *self.places):
            nn.init.normal_(embedding.weight, std=0.5)  # type: ignore[arg-type]
        self.register_buffer("units", torch.tensor(spec.units), persistent=False)

    def forward(self, x_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embed the cells."""
        # By index, since an exported program cannot contain the split of an empty tensor.
        places = (embed(self.units[kind]) for kind, embed in enumerate(self.places))
        return self.symbol(x_BT) + sum(places)


def _peer_masks(units: Int[Tensor, "kinds T"], num_heads: int) -> Tensor:
    """Masks of shape (H, T, T): heads in turn see each kind of unit, then all peers."""
    same = units[:, :, None] == units[:, None, :]
    kinds = [*same, same.any(0)]
    return torch.stack([kinds[head % len(kinds)] for head in range(num_heads)])

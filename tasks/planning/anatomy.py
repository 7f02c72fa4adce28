"""A model taken apart: its networks in the order of a training step, and how often each is called.

Whatever the model, a step embeds, calls the blocks of a backbone once each, updates a state
again and again, and reads it with a head. What a model lacks is empty or None.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from implicit import BackwardMode, Exact, FixedPointLayer, Neumann, Phantom, Unrolled
from models import (
    AttractorLM,
    GridAttractor,
    GridTransformer,
    ParcaeLM,
    Reasoner,
    TransformerLM,
)
from models.stack import Stack


@dataclasses.dataclass(frozen=True)
class Calls:
    """How often a training step calls the map that it solves for, or loops over.

    Attributes:
        free: Calls that record nothing.
        recorded: Calls that are backpropagated through.
        kept: Calls of which backpropagation keeps what it needs, at the same time.
        products: Products with the transpose of the map's Jacobian, besides.
    """

    free: int
    recorded: int
    kept: int
    products: int = 0


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The networks of a model.

    Attributes:
        embed: Inputs to tokens.
        backbone: What is called once each, on tokens.
        update: The map (state, tokens) -> state; None without one.
        start: From tokens to a state for the map.
        head: From a state to logits.
        layer: What solves, if the map is solved and not looped over.
        loops: Recorded loops at the end, if the map is looped over.
        optional: With a budget of 0, the map is not called at all.
        parts: Modules by the part that they belong to.
    """

    embed: Callable[[Tensor], Tensor]
    backbone: Sequence[nn.Module]
    update: Callable[[Any, Tensor], Any] | None
    start: Callable[[Tensor], Any]
    head: Callable[[Any], Tensor]
    layer: FixedPointLayer | None
    loops: int
    optional: bool
    parts: dict[str, list[nn.Module]]

    def parameters(self, model: nn.Module) -> dict[str, int]:
        """How many, by part; what belongs to none, such as a learned start, is "other"."""
        counts = {name: _count(modules) for name, modules in self.parts.items()}
        counts["other"] = _count([model]) - sum(counts.values())
        return {name: count for name, count in counts.items() if count}

    def calls(self, steps: int) -> Calls:
        """Of a step whose solve makes `steps` updates, and so evaluates its map once more."""
        if self.update is None or (steps == 0 and self.optional):
            return Calls(0, 0, 0)
        if self.layer is None:
            recorded = min(steps, self.loops)
            return Calls(steps - recorded, recorded, recorded)
        return _calls_of(self.layer.backward_mode, steps)


def _calls_of(mode: BackwardMode, steps: int) -> Calls:
    match mode:
        case Unrolled():
            # The last evaluation is recorded as well, and leads nowhere.
            return Calls(1, steps, steps + 1)
        case Phantom():
            return Calls(steps + 1, mode.steps, mode.steps)
        case Neumann():
            return Calls(steps + 1, 1, 1, mode.terms)
        case Exact():
            # Two calls are recorded, but the cotangent of one is zero. The adjoint solve is taken
            # to be as long as the forward one; one product more makes second derivatives right.
            return Calls(steps + 2, 1, 2, steps + 2)
    return Calls(steps + 1, 1, 1)


def dissect(model: nn.Module) -> Anatomy:
    """Take one of this library's models apart.

    Raises:
        TypeError: It is of another kind.
    """
    match model:
        case AttractorLM() | TransformerLM() | ParcaeLM():
            return _language(model)
        case GridAttractor() | GridTransformer() | Reasoner():
            return _grid(model)
    known = "AttractorLM, TransformerLM, ParcaeLM, GridAttractor, GridTransformer, Reasoner"
    raise TypeError(f"A plan is made for one of {known}: got {type(model).__name__}.")


def _language(model: AttractorLM | TransformerLM | ParcaeLM) -> Anatomy:
    update, layer, loops = None, None, 0
    refiner: list[nn.Module] = []
    match model:
        case AttractorLM():
            blocks, layer = _blocks(model.attractor.backbone), model.solving
            update = layer.module
            refiner.append(layer.module)
        case ParcaeLM():
            blocks = [*_blocks(model.prelude), *_blocks(model.coda)]
            update, loops = model.loop, model.recorded
            refiner.append(model.blocks)
        case TransformerLM():
            blocks = _blocks(model.blocks)
    words = model.vocabulary
    head = [words.norm, *([] if words.head is None else [words.head])]
    return Anatomy(
        embed=words,
        backbone=blocks,
        update=update,
        start=lambda h: h,
        head=words.decode,
        layer=layer,
        loops=loops,
        optional=True,
        parts={
            "embedding": [words.embedding],
            "backbone": blocks,
            "refiner": refiner,
            "head": head,
        },
    )


def _grid(model: GridAttractor | GridTransformer | Reasoner) -> Anatomy:
    layer = None if isinstance(model, GridTransformer) else model.solving
    match model:
        case Reasoner():
            embed, blocks = model.encoder, []
        case GridAttractor():
            embed, blocks = _halves(model.attractor.backbone)
        case GridTransformer():
            embed, blocks = _halves(model.body)
    head: list[nn.Module] = [model.head]
    if isinstance(model, Reasoner) and model.halt is not None:
        head.append(model.halt)
    refiner = [] if layer is None else [layer.module]
    return Anatomy(
        embed=embed,
        backbone=blocks,
        update=None if layer is None else layer.module,
        start=lambda h: (h, h) if isinstance(model, Reasoner) else h,
        head=lambda state: model.head(state[0] if isinstance(model, Reasoner) else state),
        layer=layer,
        loops=0,
        optional=not isinstance(model, Reasoner),
        parts={"embedding": [embed], "backbone": blocks, "refiner": refiner, "head": head},
    )


def _blocks(stack: nn.Module) -> list[nn.Module]:
    """What a stack is made of; a network that is none of ours is one block."""
    return list(stack) if isinstance(stack, Stack) else [stack]


def _halves(body: Any) -> tuple[nn.Module, list[nn.Module]]:
    """An encoder, and the blocks after it."""
    encoder, blocks = body
    return encoder, list(blocks)


def _count(modules: Iterable[nn.Module]) -> int:
    unique = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(unique.values())

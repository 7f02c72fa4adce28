"""Causal language models: an Attractor, and baselines of the same blocks and size.

    Attractor     a backbone proposes y0 = T_b(E x); y* = H(y* + y0) - y* refines it; E decodes
    DEQ           no backbone: the equilibrium of a hidden state, from zeros
    Parcae        a loop that is run and not solved: see `models.parcae`
    Transformer   as many blocks, each used once: see `models.transformer`

Every model decodes with its embedding, and decodes y0 and y* alike, so `max_steps=0` removes the
solver. Each token has its own mixing coefficients and verdict, so that no token depends on later
ones, whatever the tolerance.

Legend: B batch, T tokens, V vocabulary, D width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from implicit import BackwardMode, FixedPointLayer, Solution
from models.attention import ROTARY_BASE, KVCache, SelfAttention
from models.attractor import Attractor, AttractorOutput, Start
from models.blocks import PreNormBlock, RMSNorm, rms_norm
from models.hugging_face import HuggingFaceStack
from models.recurrent import Gru, Scan
from models.released import released_block_, released_matrix_
from models.stack import Stack, ValueEmbeddings, has_value_embeddings, reserve
from solvers import FixedPointSolver

Initial = Literal["plain", "released"]
Injection = Literal["additive", "concat", "initial"]
Mixer = Literal["attention", "scan", "gru", "gpt2", "llama"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageSpec:
    """The shape of a language model.

    Attributes:
        vocabulary: V.
        width: D.
        num_heads: Heads of the attention; divides the width.
        backbone_blocks: Blocks that make the proposal.
        refiner_blocks: Blocks of the map that is solved.
        expansion: Hidden width of the MLPs over D; two thirds of it where they have three
            matrices ("llama").
        mixer: What lets tokens of the backbone exchange information: attention, a scan as in
            state-space models, or a GRU; or the backbone as a whole: "gpt2" or "llama" of the
            package `transformers`, with their own norms and positions. The refiner has our
            attention.
        context: Longest sequence, for "gpt2", which learns its positions; others have no limit.
        rope_base: Of the rotary positions of our attention.
        gate: Upper bound of the refiner's learned gates.
        gate_start: Where they start; None: at half of it.
        initial: First weights. "plain": torch's, and small embeddings. "released": as in the
            public code, for backbones of "attention"; see `models.released`.
        norm_embedding: Tokens enter the backbone with a root mean square of 1, instead of as
            small as their embeddings are.
        injection: How the refiner sees the proposal. "additive": y <- H(y + y0) - y.
            "concat": y <- H(W [y, y0]). "initial": y <- H(y), so that it is only the start.
        start: Where the solve starts.
        tied: Decode with the embedding.
        norm_eps: What norms add to the mean square.
        value_embeddings: In every second block that is not solved, attention adds an embedding of
            the token to its values; see `models.stack.ValueEmbeddings`.

    Raises:
        ValueError: A size is below 1, an option unknown, or two of them do not go together.
    """

    vocabulary: int
    width: int = 128
    num_heads: int = 4
    backbone_blocks: int = 3
    refiner_blocks: int = 1
    expansion: float = 4.0
    mixer: Mixer = "attention"
    context: int = 1024
    rope_base: float = ROTARY_BASE
    gate: float = 1.0
    gate_start: float | None = None
    initial: Initial = "plain"
    norm_embedding: bool = True
    injection: Injection = "additive"
    start: Start = "proposal"
    tied: bool = True
    norm_eps: float = 1e-6
    value_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "num_heads", "refiner_blocks", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.backbone_blocks < 0:
            raise ValueError(f"`backbone_blocks` must be 0 or more, got {self.backbone_blocks}.")
        if self.rope_base < 1:
            raise ValueError(f"`rope_base` must be at least 1, got {self.rope_base}.")
        start = self.gate if self.gate_start is None else self.gate_start
        if not 0 < start <= self.gate:
            raise ValueError(
                f"`gate` must be above 0 and `gate_start` above 0 and at most `gate`, got "
                f"{self.gate} and {self.gate_start}."
            )
        choices = (
            ("injection", Injection), ("start", Start), ("mixer", Mixer), ("initial", Initial)
        )  # fmt: skip
        for name, options in choices:
            if getattr(self, name) not in get_args(options):
                known = ", ".join(map(repr, get_args(options)))
                raise ValueError(f"`{name}` must be one of {known}, got {getattr(self, name)!r}.")
        if self.norm_eps < 0:
            raise ValueError(f"`norm_eps` must be 0 or more, got {self.norm_eps}.")
        if self.value_embeddings and self.mixer != "attention":
            raise ValueError(
                f"`value_embeddings` are for the mixer 'attention', got {self.mixer!r}."
            )

    def attention(self, gate: float | None = None, values: bool = False) -> PreNormBlock:
        """Build a block with attention, which takes value embeddings or not."""
        mixer = SelfAttention(
            self.width,
            self.num_heads,
            rotary=True,
            causal=True,
            qk_norm=True,
            base=self.rope_base,
            value_embeddings=values,
        )
        block = PreNormBlock(
            mixer, self.width, self.expansion, gate, self.gate_start, self.norm_eps
        )
        if self.initial == "released":
            released_block_(block, self.width)
        return block

    def stack(self, count: int, after: int = 0) -> Stack | HuggingFaceStack:
        """Blocks of the backbone, each used once; no block is the identity.

        Args:
            count: How many.
            after: How many blocks come after these in the model.

        Raises:
            ValueError: The blocks are those of `transformers`, which is missing.
        """
        if count and (self.mixer == "gpt2" or self.mixer == "llama"):
            return HuggingFaceStack(
                self.mixer, count, self.width, self.num_heads, self.expansion, self.context
            )
        return Stack(self._block(after + count - 1 - block) for block in range(count))

    def values(self, *sizes: int) -> ValueEmbeddings:
        """The value embeddings of stacks of these sizes, which are all blocks of a model."""
        return ValueEmbeddings(self.vocabulary, self.width, sizes, empty=not self.value_embeddings)

    def _block(self, after: int) -> PreNormBlock:
        if self.mixer == "attention":
            return self.attention(values=self.value_embeddings and has_value_embeddings(after))
        mixer = Scan(self.width) if self.mixer == "scan" else Gru(self.width)
        return PreNormBlock(mixer, self.width, self.expansion, norm_eps=self.norm_eps)


@dataclasses.dataclass(frozen=True)
class LanguageOutput:
    """The logits of a pass, and the state and the evidence behind them.

    Attributes:
        logits: Shape (B, T, V), of the token that follows each.
        state: Shape (B, T, D): what they were read from.
        solution: The evidence, per token; None for a model without a solve.
        proposal: Shape (B, T, D): the backbone's proposal; None for a model without a solve.
        halt: Always None, since there is no halting head.
    """

    logits: Float[Tensor, "B T V"]
    state: Float[Tensor, "B T D"]
    solution: Solution | None
    proposal: Float[Tensor, "B T D"] | None = None
    halt: None = None


class Cache(NamedTuple):
    """What the blocks of a language model keep of the tokens so far.

    Attributes:
        backbone: The cache of each block that is used once.
        refiner: The cache of each block that is solved or looped over, for each of its uses.
    """

    backbone: tuple[Any, ...]
    refiner: tuple[KVCache, ...]

    def select(self, rows: Int[Tensor, " N"]) -> "Cache":
        """Return the cache of these sequences, as a beam search chooses them."""
        backbone, refiner = (tuple(part.select(rows) for part in parts) for parts in self)
        return Cache(backbone, refiner)


class LanguageModel(Protocol):
    """What training and generation need of a model."""

    @property
    def solving(self) -> FixedPointLayer | None:
        """The layer that solves, if there is one."""
        ...

    def __call__(self, ids: Tensor, *, max_steps: int | None = None) -> LanguageOutput:
        """Logits of every token."""
        ...

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> Cache:
        """The cache before a prompt, of which `valid` tells tokens from padding."""
        ...

    def extend(
        self, ids: Tensor, cache: Cache, *, max_steps: int | None = None
    ) -> tuple[LanguageOutput, Cache]:
        """Logits of new tokens; only these are solved for, as earlier tokens are final."""
        ...


class Vocabulary(nn.Module):
    """Embed tokens, and decode states: with one matrix, or two if not `tied`."""

    def __init__(self, spec: LanguageSpec):
        super().__init__()
        self.embedding = nn.Embedding(spec.vocabulary, spec.width)
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        self.head = None if spec.tied else nn.Linear(spec.width, spec.vocabulary, bias=False)
        self.norm_embedding = spec.norm_embedding
        if spec.initial == "released":
            for part in (self.embedding, self.head):
                if part is not None:
                    released_matrix_(part.weight, spec.width)
            return
        # With a larger one, the state of a token, near its embedding at first, predicts that token.
        nn.init.normal_(self.embedding.weight, std=spec.width**-0.75)

    def forward(self, ids_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embed tokens, with root mean square 1 if `LanguageSpec.norm_embedding`."""
        embedded = self.embedding(ids_BT)
        return rms_norm(embedded) if self.norm_embedding else embedded

    def decode(self, y_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """The logits of a state."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.norm(y_BTD), weight)


class Refiner(nn.Module):
    """The map (y, y0) -> y that is solved; see `LanguageSpec.injection`."""

    def __init__(self, spec: LanguageSpec):
        super().__init__()
        self.injection = spec.injection
        self.blocks = Stack(spec.attention(spec.gate) for _ in range(spec.refiner_blocks))
        concat = spec.injection == "concat"
        self.mix = nn.Linear(2 * spec.width, spec.width, bias=False) if concat else None
        if self.mix is not None and spec.initial == "released":
            released_matrix_(self.mix.weight, spec.width)

    def forward(self, y: Tensor, y0: Tensor, *past: KVCache) -> Tensor:
        """One update, of all tokens or of those that follow `past`."""
        h = self._injected(y, y0)
        h = self.blocks.extend(h, past)[0] if past else self.blocks(h)
        return h - y if self.injection == "additive" else h

    def remember(self, y: Tensor, y0: Tensor, past: Sequence[KVCache]) -> tuple[KVCache, ...]:
        """Return the caches for the tokens to come, given that these have the state `y`."""
        return self.blocks.remember(self._injected(y, y0), past)

    def _injected(self, y: Tensor, y0: Tensor) -> Tensor:
        if self.injection == "additive":
            return y + y0
        if self.mix is None:
            return y
        # In the precision of the state, which autocast would lower.
        return self.mix(torch.cat((y, y0), -1)).to(y.dtype)


class AttractorLM(nn.Module):
    """A language model whose output embedding is refined to a fixed point.

    Without backbone blocks, and started at zeros, it is the hidden-state DEQ of the paper's
    ablation.

    Args:
        spec: The shape.
        solver: See `implicit.fixed_point`.
        backward: See `implicit.fixed_point`; the paper trains with "jacobian_free".
        max_steps: Budget of updates; a single call may override it, and 0 removes the solver.

    Raises:
        ValueError: The shape has value embeddings, which these models do without.

    References:
        Solve the Loop: Attractor Models for Language and Reasoning, arXiv:2605.12466, sec. 3.
    """

    def __init__(
        self,
        spec: LanguageSpec,
        solver: str | FixedPointSolver = "anderson",
        backward: str | BackwardMode = "jacobian_free",
        max_steps: int = 64,
    ):
        super().__init__()
        if spec.value_embeddings:
            raise ValueError("`value_embeddings` are for models that are not solved.")
        self.vocabulary = Vocabulary(spec)
        self.attractor = Attractor(
            spec.stack(spec.backbone_blocks),
            Refiner(spec),
            solver,
            backward,
            max_steps=max_steps,
            batch_dims=2,
            start=spec.start,
        )

    @property
    def solving(self) -> FixedPointLayer:
        """The layer that solves: its solver may be replaced after training."""
        return self.attractor.refiner

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        *,
        start: Tensor | None = None,
        fresh: Bool[Tensor, " B"] | None = None,
        max_steps: int | None = None,
    ) -> LanguageOutput:
        """Logits of every token; see `Attractor.forward` for the options."""
        embedded = self.vocabulary(ids)
        out = self.attractor(embedded, start=start, fresh=fresh, max_steps=max_steps)
        return self._decoded(out)

    def empty_cache(self, valid: Bool[Tensor, "B T"]) -> Cache:
        """See `LanguageModel`."""
        backbone, refiner = self._parts()
        return Cache(backbone.empty_caches(valid), refiner.blocks.empty_caches(valid))

    def extend(
        self, ids: Int[Tensor, "B T"], cache: Cache, *, max_steps: int | None = None
    ) -> tuple[LanguageOutput, Cache]:
        """See `LanguageModel`."""
        backbone, refiner = self._parts()
        proposal, past = backbone.extend(self.vocabulary(ids), cache.backbone)
        refined = cache.refiner
        if not torch.is_grad_enabled():
            # The space is reserved once, instead of appending in every evaluation.
            refined = reserve(refined, ids.shape[1])
        out = self.attractor.refine(proposal, *refined, max_steps=max_steps)
        if not torch.is_grad_enabled() and _ended_at_value(out.solution):
            refined = tuple(before.filled() for before in refined)
        else:
            refined = refiner.remember(cast(Tensor, out.value), proposal, refined)
        return self._decoded(out), Cache(past, refined)

    def _decoded(self, out: AttractorOutput) -> LanguageOutput:
        value, proposal = cast(Tensor, out.value), cast(Tensor, out.proposal)
        return LanguageOutput(self.vocabulary.decode(value), value, out.solution, proposal)

    def _parts(self) -> tuple[Stack | HuggingFaceStack, Refiner]:
        return cast(Stack | HuggingFaceStack, self.attractor.backbone), cast(
            Refiner, self.solving.module
        )


def _ended_at_value(solution: Solution) -> bool:
    """Whether the last call of the map was at the solution of every token."""
    last = solution.num_steps == solution.num_evals - 1
    return bool(last.logical_and_(solution.converged).all())

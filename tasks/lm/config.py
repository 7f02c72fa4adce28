"""The options of a language-model run, and its presets."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch

from implicit import Neumann, Phantom, get_backward
from implicit.base import BackwardMode
from models import LanguageSpec
from solvers import FixedPointSolver, get_solver
from tasks.lm.networks import Attractor, Deq, LanguageModule, Parcae, Transformer
from tasks.lm.text_data import NO_TEXT, SOURCES, TextData
from tasks.training.options import Config, Kind, NoSolve, Section, TrainOptions


@dataclass(frozen=True, kw_only=True)
class Solve(Section):
    """Any solver and any backward mode.

    Attributes:
        solver: Registered solver.
        backward: Registered backward mode.
        history: Window of the solver.
        rtol: Relative residual of a solved token.
        train_rtol: The same in training; by default `rtol`.
        min_steps: Solver updates before a token may stop.
        train_max_steps: Solver updates in training, at most.
        recorded_steps: Recorded updates after them.
        terms: Of the series; 1 is the published one-step gradient.
        eval_max_steps: In evaluation; 0 leaves the proposal.
    """

    solver: str = "anderson"
    backward: str = "jacobian_free"
    history: int = 5
    rtol: float = 3e-4
    train_rtol: float | None = None
    min_steps: int = 0
    train_max_steps: int = 64
    recorded_steps: int = 4
    terms: int = Neumann.terms
    eval_max_steps: int = 64

    def __post_init__(self) -> None:
        self.require(0, "eval_max_steps", "min_steps", "terms")
        self.require(1, "recorded_steps")
        self.require(0, "history", most=1000)
        if self.train_rtol is not None and not self.rtol <= self.train_rtol < 1:
            raise ValueError(
                f"`train_rtol` must be at least `rtol`, {self.rtol:g}, and below 1, got "
                f"{self.train_rtol!r}."
            )
        self.evaluation_solver()
        self.backward_mode()

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        found = {}
        if not hasattr(get_solver(self.solver), "history"):
            found["history"] = "with solvers that have a window, such as `--solver anderson`"
        if not hasattr(get_solver(self.solver), "min_steps"):
            found["min_steps"] = "with solvers that have it, such as `--solver anderson`"
        if not isinstance(get_backward(self.backward), Phantom):
            found["recorded_steps"] = "with `--backward phantom`"
        if not isinstance(get_backward(self.backward), Neumann):
            found["terms"] = "with `--backward neumann`"
        return found

    @property
    def train_steps(self) -> int:
        """Solver updates in training, at most."""
        return self.train_max_steps

    def evaluation_solver(self, name: str | None = None) -> FixedPointSolver:
        """The solver, or another one by name, with this run's tolerance and window."""
        name = name or self.solver
        options: dict[str, Any] = {"rtol": self.rtol}
        for option in ("history", "min_steps"):
            if hasattr(get_solver(name), option):
                options[option] = getattr(self, option)
        return get_solver(name, **options)

    def backward_mode(self) -> BackwardMode:
        """The backward mode, with the options of this run."""
        mode = get_backward(self.backward)
        if isinstance(mode, Phantom):
            return dataclasses.replace(mode, steps=self.recorded_steps)
        if isinstance(mode, Neumann):
            return dataclasses.replace(mode, terms=self.terms)
        return mode


@dataclass(frozen=True, kw_only=True)
class Training(TrainOptions):
    """How to train a language model; see `TrainOptions`.

    Attributes:
        optimizer: Muon, NorMuon: for matrices, AdamW for others.
        adamw_rate: AdamW's share of the rate.
    """

    optimizer: Literal["adamw", "muon", "normuon"] = "adamw"
    adamw_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_rates("adamw_rate")

    def require_rates(self, *names: str) -> None:
        """Check that these shares of a rate are positive."""
        for name in names:
            if not 0 < getattr(self, name) <= 100:
                raise ValueError(
                    f"`{name}` must be above 0 and at most 100, got {getattr(self, name)!r}."
                )

    def unused(self) -> dict[str, str]:
        """See `Section`."""
        own = [
            name for name in ("adamw_rate", "refiner_rate", "refiner_decay") if name in self.names()
        ]
        other = (
            {} if self.optimizer == "normuon" else dict.fromkeys(own, "with `--optimizer normuon`")
        )
        return super().unused() | other


@dataclass(frozen=True, kw_only=True)
class RefinerTraining(Training):
    """How to train a language model that is solved; see `TrainOptions`.

    Attributes:
        refiner_rate: Share of AdamW's rate for what is solved, which AdamW trains then.
        refiner_decay: Weight decay of its matrices.
    """

    refiner_rate: float = 1.0
    refiner_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_rates("refiner_rate")
        self.require(0, "refiner_decay")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Config):
    """Train a language model on text, then evaluate it on text held out."""

    kinds: ClassVar[dict[str, Kind]] = {
        "attractor": Kind(Attractor, Solve, RefinerTraining),
        "transformer": Kind(Transformer, NoSolve, Training),
        "parcae": Kind(Parcae, NoSolve, Training),
        "deq": Kind(Deq, Solve, RefinerTraining),
    }
    data_type: ClassVar[type[TextData]] = TextData
    defaults: ClassVar[dict[str, Any]] = {
        "model": "attractor",
        "batch_size": 16,
        "learning_rate": 8e-3,
        "schedule": "trapezoid",
        "optimizer": "muon",
        "warmup": 20,
        "weight_decay": 0.01,
        "averaging": 0.95,
    }
    dropped: ClassVar[frozenset[str]] = frozenset({"segments", "refill", "halting", "loss"})
    unit: ClassVar[str] = "token"

    data: TextData

    def __post_init__(self) -> None:
        self.spec()

    def changed(self, **options: Any) -> Self:
        """See `Config`; a source of text takes the place of the one that there is."""
        named = any(options.get(name) is not None for name in SOURCES)
        return self._from(self.flat() | (NO_TEXT if named else {}), options)

    @property
    def length(self) -> int:
        """Number of inputs in a row of the batch."""
        return self.data.context

    @property
    def num_inputs(self) -> int:
        """Number of tokens of the vocabulary."""
        return self.data.vocabulary

    @property
    def num_train_tokens(self) -> int | None:
        """Tokens of the whole run; None if minutes are its budget."""
        steps, train = self.train.steps, self.train
        return None if steps is None else steps * train.batch_size * self.data.context

    @property
    def train_steps(self) -> int:
        """Most solver updates in training; for "parcae", the expected number of loops."""
        return self._longest_loop if self.model.name == "parcae" else self.solve.train_steps

    @property
    def _longest_loop(self) -> int:
        """Expected largest draw of a batch, whose sequences all loop as long; see `ParcaeLM`."""
        loops = float(self.model.loops)
        # The chance that a Poisson number is below each of these.
        if self.model.recurrence == "released":
            below = torch.special.gammaincc(torch.arange(2, 5 * loops + 20), torch.tensor(loops))
        else:
            below = torch.special.gammaincc(torch.arange(1, 2 * loops), torch.tensor(loops - 1))
        return 1 + round(float((1 - below**self.train.batch_size).sum()))

    def spec(self) -> LanguageSpec:
        """The shape of the model."""
        data = self.data
        shape = self.model.shape()
        return LanguageSpec(vocabulary=data.vocabulary, context=data.context, **shape)

    def build(self) -> LanguageModule:
        """The model, with fresh weights."""
        return self.model.build(self.spec(), self.solve)


# The published "one-step" gradient, u = v + J^T v.
ONE_STEP: dict[str, Any] = {"backward": "neumann", "terms": 1}
SMALL: dict[str, Any] = {**ONE_STEP, "refiner_rate": 0.5, "refiner_decay": 0.1}


def _published(
    width: int, blocks: tuple[int, int], billions: float, **options: Any
) -> LanguageConfig:
    """A size as it was released with arXiv:2605.12466; docs/reproduce.md lists what differs.

    Args:
        width: Numbers per token, in heads of 128.
        blocks: Of the backbone and of the refiner.
        billions: Of tokens to train on.
        options: Others.
    """
    batch, context = 256, 2048
    return LanguageConfig.of(
        dataset="HuggingFaceFW/fineweb-edu",
        dataset_name="sample-100BT",
        vocabulary=32_768,
        context=context,
        width=width,
        num_heads=width // 128,
        backbone_blocks=blocks[0],
        refiner_blocks=blocks[1],
        batch_size=batch,
        steps=round(billions * 1e9 / (batch * context)),
        optimizer="normuon",
        weight_decay=0.2,
        rope_base=50_000.0,
        initial="released",
        norm_embedding=False,
        norm_eps=1e-5,
        schedule="trapezoid-to-zero",
        warmup=1,
        averaging=0.0,
        max_bytes=200_000_000,
        eval_tokens=10_485_760,
        autocast=True,
        compile=True,
        **options,
    )


def _baselines(
    size: str, width: int, blocks: int, attractor: LanguageConfig
) -> dict[str, LanguageConfig]:
    """The released baselines of a size, and "equal" ones with as many blocks as the Attractor.

    A third of the blocks of Parcae comes before its loop, a third is looped, and a third follows.
    """
    tokens, third = attractor.num_train_tokens, blocks // 3
    assert tokens is not None
    # The longest runs of baselines read the larger sample.
    sample = "sample-350BT" if size == "1.3b" else "sample-100BT"
    rates = {"learning_rate": 8e-3, "adamw_rate": 0.75 if size in ("770m", "1.3b") else 1.0}
    released = functools.partial(
        _published, width, billions=tokens / 1e9, value_embeddings=True, **rates
    )
    equal = attractor.changed(**rates)
    made = {
        f"transformer-{size}": released(blocks=(blocks - 1, 1), model="transformer"),
        f"parcae-{size}": released(
            blocks=(2 * third, third), model="parcae", coda_blocks=third, recurrence="released"
        ),
        f"equal-transformer-{size}": equal.changed(model="transformer"),
        f"equal-parcae-{size}": equal.changed(model="parcae"),
    }
    return {name: config.changed(dataset_name=sample) for name, config in made.items()}


PRESETS: dict[str, LanguageConfig] = {
    "tiny": LanguageConfig.of(
        minutes=0.5, threads=1, width=64, num_heads=4, backbone_blocks=1, vocabulary=257,
        context=64, max_bytes=1_000_000, eval_tokens=8192,
    ),
    "mini": LanguageConfig.of(
        minutes=1.5, threads=1, width=64, num_heads=4, backbone_blocks=1, vocabulary=512,
        context=64, eval_tokens=32_768,
    ),
    "small": LanguageConfig.of(),
    # The shape and the split of nanoGPT's recipe for a CPU, https://github.com/karpathy/nanoGPT.
    "shakespeare": LanguageConfig.of(
        text=Path("tinyshakespeare.txt"), vocabulary=257, context=64, held_out=0.1,
        eval_tokens=111_540, steps=2000, batch_size=12, threads=1, learning_rate=4e-3,
        width=128, num_heads=4, backbone_blocks=3,
    ),
    # Of the ablations: no file of it was released, and only this width has 60.3 million parameters
    # with the blocks of the next size.
    "60m": _published(640, (7, 1), 1.0, gate=0.75, gate_start=0.75, min_steps=6, **SMALL),
    "140m": _published(1024, (7, 1), 11.2, gate=0.75, gate_start=0.75, min_steps=6, **SMALL),
    "370m": _published(
        1280, (15, 2), 29.6, gate_start=0.75, rtol=2e-4, min_steps=8, refiner_rate=0.4,
        refiner_decay=0.1, **ONE_STEP,
    ),
    "770m": _published(
        1280, (35, 2), 61.6, gate=0.9, gate_start=0.73, rtol=1.5e-4, min_steps=6,
        train_max_steps=32, eval_max_steps=32, backward="exact", learning_rate=6e-3,
        adamw_rate=5 / 6, refiner_rate=0.4, refiner_decay=0.1,
    ),
    # As released it has 786 million parameters; only its tokens are those of its name.
    "1.3b": _published(
        1536, (23, 3), 104.0, gate_start=0.5, rtol=1e-4, min_steps=8, learning_rate=4e-3,
        refiner_rate=0.75, **ONE_STEP,
    ),
}  # fmt: skip
for _shape in (("140m", 768, 6), ("370m", 1024, 12), ("770m", 1280, 18), ("1.3b", 1536, 24)):
    PRESETS |= _baselines(*_shape, PRESETS[_shape[0]])
DEFAULT_PRESET = "small"


class LanguageTask:
    """The language task, as the shared command line sees it."""

    name = "lm"
    config_type = LanguageConfig
    presets = PRESETS
    default_preset = DEFAULT_PRESET

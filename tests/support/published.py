"""Small networks of TRM, HRM, EqR and the Attractor, whose updates the public code has computed.

`tests/models/published.json` was recorded by running the public modules in float64, with every
`torch.float32` in their files replaced by `torch.float64`, attention by torch's own function, and
weights, inputs and noise by the formulas below. In order of its cases:

    trm, trm-mixer   `TinyRecursiveReasoningModel_ACTV1_Inner` of SamsungSAILMontreal/
                     TinyRecursiveModels, commit e7b6871: three H-cycles of six L-cycles
    hrm              `HierarchicalReasoningModel_ACTV1_Inner` of sapientinc/HRM, commit 42410da:
                     two H-cycles of two L-cycles
    eqr, eqr-mixer   `InnerNetwork` of locuslab/EqR, commit 4d45856: as TRM, with `torch.randn_like`
                     replaced by `noise`
    reasoner         embeddings, `L_level` and heads of `TRMDEQ_Inner` of jacobfa/Attractor, commit
                     fcf045f: z by one call, then y by one; its solver is left out

All have 9x9 boards, width 16, 2 heads and 2 blocks, so that MLPs have 256 hidden numbers, and the
mixer over 97 tokens 512. Recorded are, of two questions, norm and six entries of the states y and z
after the update and of the logits of the digits, the logits of halting, and the norms of gradients.

Of `hrm` there are training steps as well, by `HierarchicalReasoningModel_ACTV1` and its
`ACTLossHead` in training, without exploration and with the logits of the digits alone. They start
from `segment_start` with so many `segments` made; `answers` of the second question are right. The
loss is the mean over both, as `pretrain.py` divides it.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.sudoku.config import SudokuConfig

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "models" / "published.json").read_text()
)
PUZZLE_TOKENS = {"trm": 16, "hrm": 1, "eqr": 0, "reasoner": 16}


def config(case: str) -> SudokuConfig:
    """Ours of a case."""
    model, _, mixer = case.partition("-")
    heads = {} if mixer else {"num_heads": 2}
    return SudokuConfig.of(
        model=model, layout=mixer or "attention", width=16, expansion=16.0, refiner_blocks=2,
        halting="q-learning" if model == "hrm" else "right", puzzle_tokens=PUZZLE_TOKENS[model],
        **heads,
    )  # fmt: skip


def weights(case: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Those of the public module, by name."""
    shapes = RECORDED[case]["shapes"]
    return {
        name: formula(shape, seed, math.sqrt(2 / (shape[-1] if len(shape) == 2 else 1))).to(dtype)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def questions() -> Tensor:
    """Two boards; 0 is a blank."""
    return (torch.arange(2 * 81).view(2, -1) * 7 + 3) % 10


def segment_start(tokens: int) -> tuple[Tensor, ...]:
    """States y and z from which the recorded training steps start."""
    return tuple(formula((2, tokens, 16), 70 + i, math.sqrt(2)) for i in range(2))


def answers(logits: Tensor) -> Tensor:
    """The classes of the recorded training steps, of which the second row is what is predicted."""
    wrong = (torch.arange(2 * 81).view(2, -1) * 5 + 2) % 9
    return torch.stack([wrong[0], logits[1].argmax(-1)])


def formula(shape: Sequence[int], seed: int, scale: float) -> Tensor:
    """Numbers without a pattern, the same everywhere, of variance scale^2 / 2."""
    n = torch.arange(math.prod(shape)).reshape(*shape)
    return scale * torch.sin(n.double() * (1.0 + seed / 7) + seed)


def summary(values: Tensor) -> list[float]:
    """What is recorded of a tensor: its norm and six entries."""
    flat = values.detach().flatten()
    return [flat.norm().item(), *flat[:: max(1, len(flat) // 6)][:6].tolist()]

"""Weights of the public code of TRM, HRM and EqR, and the same weights as our models name them.

The published networks number symbols from 1 on, 0 being padding, and can answer with a blank or
with padding. Ours cannot: the rows of these symbols are left out, as is that of the logit for going
on, which is in all files, where the halting head does not learn by Q-learning as HRM's does.

Legend: D width, V symbols of the published networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.checkpoints.file import CheckpointError
from tasks.puzzles.config import GridConfig
from tasks.puzzles.published_files import PublishedCheckpoint

# The models whose weights were released.
MODELS = ("trm", "hrm", "eqr")
# Our names, as patterns, and those published.
NAMES = {
    r"encoder\.embedding\.weight": "embed_tokens.embedding_weight",
    r"encoder\.puzzle": "puzzle_emb.weights",
    r"head\.weight": "lm_head.weight",
    r"halt\.(weight|bias)": r"q_head.\1",
    r"solving\.module\.(?:net|low)\.(\d+)\.": r"L_level.layers.\1.",
    r"solving\.module\.high\.(\d+)\.": r"H_level.layers.\1.",
    r"\bmixer\.qkv\b": "self_attn.qkv_proj",
    r"\bmixer\.out\b": "self_attn.o_proj",
    r"\bmixer\.mlp\.into\b": "mlp_t.gate_up_proj",
    r"\bmixer\.mlp\.out\b": "mlp_t.down_proj",
    r"\bmlp\.into\b": "mlp.gate_up_proj",
    r"\bmlp\.out\b": "mlp.down_proj",
}
STARTS = ("H_init", "L_init")
# What some files have besides weights: caches that are filled anew, and the starts of EqR, which
# begins at random.
CACHES = re.compile(r"puzzle_emb\.local_(weights|ids)|rotary_emb\.\w+|[HL]_init")
SHOWN = 3


def published_name(name: str) -> str:
    """What a weight of ours is called in the published networks."""
    for ours, theirs in NAMES.items():
        name = re.sub(ours, theirs, name)
    return name


def expected_shapes(config: GridConfig, first_symbol: int) -> dict[str, tuple[int, ...]]:
    """The weights of the published network of a configuration.

    Args:
        config: Of a model in `MODELS`.
        first_symbol: See `GridTask`.

    Returns:
        The shape of each weight by name.
    """
    with torch.device("meta"):
        ours = config.build().state_dict()
    symbols, found = config.num_classes + first_symbol + 1, {}
    for name, tensor in ours.items():
        shape = tuple(tensor.shape)
        if name == "start":
            found |= dict.fromkeys(STARTS, shape[1:])
        elif name == "encoder.puzzle":
            found[published_name(name)] = (1, *shape)
        elif name in ("encoder.embedding.weight", "head.weight"):
            found[published_name(name)] = (symbols, *shape[1:])
        elif name.startswith("halt."):
            found[published_name(name)] = (2, *shape[1:])
        else:
            found[published_name(name)] = shape
    return found


def misfits(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with weights of a published network, each in a few words."""
    odd = {
        "missing": [name for name in expected if name not in weights],
        "not of this network": [
            name for name in weights if name not in expected and not CACHES.fullmatch(name)
        ],
        "of another shape": [
            f"{name} ({tuple(weights[name].shape)} in the file, {shape} in the network)"
            for name, shape in expected.items()
            if name in weights and tuple(weights[name].shape) != shape
        ],
        "no finite real numbers": [
            name
            for name in expected
            if name in weights
            and not (weights[name].is_floating_point() and bool(weights[name].isfinite().all()))
        ],
    }
    return [f"{problem}: {_first(names)}" for problem, names in odd.items() if names]


def arch_misfits(arch: Mapping[str, Any], config: GridConfig) -> list[str]:
    """Which options of a published network differ from those of a configuration.

    Shapes of weights do not show them. Options that are not known are not compared.
    """
    spec, model = config.spec(), config.model
    cycles = (2, 2) if model.name == "hrm" else (3, spec.cycles)
    mixes = spec.layout == "mixer"
    wanted = {
        "H_cycles": cycles[0],
        "L_cycles": cycles[1],
        "num_heads": arch.get("num_heads") if mixes else spec.num_heads,
        "pos_encodings": "none" if mixes else "rope",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    }
    if model.name == "trm" and spec.puzzle_tokens:
        wanted["puzzle_emb_len"] = spec.puzzle_tokens
    if model.name == "eqr":
        wanted |= {"lambda_": 0.95, "noise_scale": 0.01, "H_init_std": 1.0, "L_init_std": 1.0}
    return [
        f"`{name}` is {arch[name]!r:.50} and must be {value!r}"
        for name, value in wanted.items()
        if name in arch and (arch[name] or "none") != value
    ]


def converted(
    weights: Mapping[str, Tensor], config: GridConfig, first_symbol: int
) -> dict[str, Tensor]:
    """The weights of our model that computes what a published network does.

    Args:
        weights: Those of `expected_shapes`, and perhaps `CACHES`.
        config: Of the model.
        first_symbol: See `GridTask`.

    Returns:
        Our weights by name, in the default dtype.
    """
    with torch.device("meta"):
        names = list(config.build().state_dict())
    halting = slice(2 if config.model.halting == "q-learning" else 1)
    rows = {
        # 0 is padding, and our symbols follow; our classes begin at `first_symbol`.
        "encoder.embedding.weight": slice(1, 1 + config.num_inputs),
        "head.weight": slice(1 + first_symbol, 1 + first_symbol + config.num_classes),
        "halt.weight": halting,
        "halt.bias": halting,
    }
    found, dtype = {}, torch.get_default_dtype()
    for name in names:
        if name == "start":
            tensor = torch.stack([weights[start].to(dtype) for start in STARTS])
        else:
            tensor = weights[published_name(name)].to(dtype)
        tensor = tensor[0] if name == "encoder.puzzle" else tensor[rows.get(name, slice(None))]
        found[name] = tensor.clone()
    return found


def converted_checkpoint(
    file: PublishedCheckpoint, config: GridConfig, preset: str, task: Any
) -> tuple[dict[str, Tensor], GridConfig]:
    """Check a released checkpoint, and return the weights of our model and its configuration.

    Raises:
        CheckpointError: It is of another network than that of the preset.
    """
    expected = expected_shapes(config, task.first_symbol)
    if found := misfits(file.weights, expected):
        fitting = fits(file.weights, task)
        those = (
            f"The file has the weights of {' or '.join(map(repr, fitting))}: name one of these "
            "with `--preset`."
            if fitting
            else f"No preset of {task.name} has these weights. Released checkpoints of Sudoku and "
            "mazes of TRM, HRM and EqR can be converted."
        )
        raise CheckpointError(
            f"The weights in {file.path} are not those of {preset!r}. {'; '.join(found)}. {those}"
        )
    if found := arch_misfits(file.arch, config):
        raise CheckpointError(
            f"The network of {file.arch_path} is not that of {preset!r}: {'; '.join(found)}. Name "
            "another preset, or evaluate it with its own code."
        )
    segments = file.arch.get("halt_max_steps")
    if isinstance(segments, int) and 0 < segments < 10_000:
        config = config.changed(eval_max_steps=segments * (config.solve.train_steps + 1))
    return converted(file.weights, config, task.first_symbol), config


def fits(weights: Mapping[str, Tensor], task: Any) -> list[str]:
    """The presets of a task whose published networks have such weights."""
    return [
        name
        for name, config in task.presets.items()
        if config.model.name in MODELS
        and not misfits(weights, expected_shapes(config, task.first_symbol))
    ]


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(name[:200] for name in names[:SHOWN]) + more

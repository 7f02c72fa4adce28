"""Models that were released with arXiv:2605.12466, from a folder, as checkpoints of this project.

The folder has `config.json` and weights in the names of the public code. The network is the same
but for where numbers stand: the public code turns neighbouring dims of a head together and ours
those half a head apart, so that rows of queries and keys are in another order; it halves a squared
ReLU, and here the last matrix of an MLP is halved; and tokens have other numbers, so that the rows
of the embedding are in another order.

References:
    `save_pretrained`, `AttractorConfig` and `Attractor` of https://github.com/jacobfa/Attractor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import FAULTS, CheckpointError, brief, parse_object, read_tensors
from tasks.checkpoints.foreign import read_pickle
from tasks.lm.config import ONE_STEP, PRESETS, LanguageConfig
from tasks.lm.released_tokenizer import ReleasedTokenizer
from tasks.lm.tokenizer_files import tokenizers_package
from tasks.runs import RUNS
from tasks.runs import WEIGHTS as RUN_WEIGHTS

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.pt", "pytorch_model.bin", "model.safetensors")
# Names of one class in the public code.
CLASSES = ("AttractorConfig", "EQLMConfig")
# Options that ours cannot have otherwise: the default of the public code, and what they must be.
FIXED: dict[str, tuple[Any, Any]] = {
    "bias": (False, False),
    "qk_bias": (False, False),
    "qk_norm": (False, True),
    "causal": (True, True),
    "clip_qkv": (None, None),
    "logit_softcap": (None, None),
    "mup_model_scaling_factor": (1, 1),
    "norm_class_name": ("LayerNorm", "RMSNorm"),
    "block_class_name": ("TransformerPreNormBlock", "TransformerPreNormBlock"),
    "mlp_class_name": ("BaseMLP", "BaseMLP"),
    "nonlin_name": ("GELU", "ReLU2"),
    # Others scale embeddings or logits.
    "init_strategy": ("scaled", "scaled-zero"),
}
SOLVERS = {"anderson": "anderson", "fpi": "picard"}
BACKWARD: dict[str, dict[str, Any]] = {
    "onestep": ONE_STEP,
    "anderson": {"backward": "exact"},
    "picard": {"backward": "exact"},
}


def convert(
    folder: Path, out: Path | None = None, tokenizer: Path | None = None
) -> tuple[Path, LanguageConfig]:
    """Write a released model as a checkpoint, which evaluates and writes but has no history.

    Args:
        folder: With `config.json`, weights, and perhaps `tokenizer.json`.
        out: The folder of the checkpoint; by default one of the same name among the runs.
        tokenizer: The tokenizer's file, if it is not in the folder.

    Returns:
        The checkpoint's file and its configuration.

    Raises:
        CheckpointError: A file is missing or broken, or of another kind of model, or there is a
            checkpoint already.
    """
    path = (out or RUNS / "lm" / folder.resolve().name) / RUN_WEIGHTS
    if path.exists():
        raise CheckpointError(f"There is {path} already. Name another folder with `--out`.")
    values = _read_config(folder / CONFIG)
    config = configuration(values, folder / CONFIG)
    words = _read_tokenizer(folder, tokenizer)
    if words.size > config.data.vocabulary:
        raise CheckpointError(
            f"The tokenizer has {words.size:,} tokens, and the model in {folder} knows "
            f"{config.data.vocabulary:,}: name the tokenizer that it was trained with."
        )
    tensors, source = _read_weights(folder)
    weights = state_dict(tensors, config, words.order, source)
    average = {f"module.{name}": tensor.float() for name, tensor in weights.items()}
    meta = {"task": "lm", "preset": folder.resolve().name, "tokenizer": words.to_json()}
    meta |= {"config": config.to_json(), "step": 0, "seconds": 0.0, "history": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    Checkpoint({"average": average}, meta).save(path)
    return path, config


def configuration(values: Mapping[str, Any], source: Path) -> LanguageConfig:
    """The configuration of a released model, solved and measured as released.

    Args:
        values: What `config.json` says.
        source: Its path, for messages.

    Raises:
        CheckpointError: It is that of another model, or of one that this project does not have.
    """
    name = values.get("_class_name")
    if name not in CLASSES:
        named = "another kind of model" if name is None else f"a {name!r:.100}"
        raise CheckpointError(
            f"{source} describes {named}; what can be converted are Attractors: "
            f"{' or '.join(map(repr, CLASSES))}. Name the folder of one."
        )
    odd = [
        f"`{option}` is {values.get(option, default)!r:.50} instead of {wanted!r}"
        for option, (default, wanted) in FIXED.items()
        if values.get(option, default) != wanted
    ]
    try:
        odd += _odd_numbers(values)
        if not odd:
            return _configuration(values)
    except FAULTS as error:
        text = f"the option {error} is missing" if isinstance(error, KeyError) else brief(error)
        raise CheckpointError(
            f"{source} is not the configuration of a released model: {text}. Use the file that "
            "was released with the weights."
        ) from error
    raise CheckpointError(
        f"{source} describes a model that this project does not have: {', '.join(odd)}. The "
        "released sizes can be converted."
    )


def _odd_numbers(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with options that must agree with each other."""
    width, heads = values["n_embd"], values["num_attention_heads"]
    if type(width) is not int or type(heads) is not int:
        raise TypeError(f"width and heads must be whole numbers, got {width!r} and {heads!r}")
    odd = []
    if (hidden := values.get("intermediate_size") or 4 * width) != 4 * width:
        odd.append(f"`intermediate_size` is {hidden!r:.50} instead of {4 * width}")
    if (others := values.get("num_key_value_heads") or heads) != heads:
        odd.append(f"`num_key_value_heads` is {others!r:.50} instead of {heads}")
    if values.get("layer_scale_init", 0.25) is None:
        odd.append("`layer_scale_init` is None, and the refiner has no gates")
    rope = values.get("rope_settings") or {}
    if not rope.get("use_rope", True) or rope.get("rope_condense_ratio", 1) != 1:
        odd.append("`rope_settings` has no rotary positions, or condensed ones")
    return odd


def _configuration(values: Mapping[str, Any]) -> LanguageConfig:
    shape = {
        "width": values["n_embd"],
        "num_heads": values["num_attention_heads"],
        "backbone_blocks": values["n_backbone_layers"],
        "refiner_blocks": values["n_fp_blocks"],
        "gate": values["gamma_max"] or 1.0,
    }
    # How it was trained is that of its size, for whoever goes on.
    like = PRESETS["140m"]
    for preset in PRESETS.values():
        if preset.model.name == "attractor" and shape.items() <= preset.flat().items():
            like = preset
    return like.changed(
        **shape,
        **BACKWARD[values.get("backward_type", "onestep")],
        gate_start=min(values["layer_scale_init"], shape["gate"]),
        vocabulary=values.get("padded_vocab_size") or values["vocab_size"],
        context=values["block_size"],
        tied=values.get("tie_embeddings", True),
        rope_base=float((values.get("rope_settings") or {}).get("rope_base", 50_000)),
        norm_eps=values.get("norm_eps", 1e-5),
        solver="anderson",
        rtol=values["tol"],
        min_steps=values["min_iter"],
        history=values.get("anderson_m", 5),
        train_max_steps=values["max_iter"],
        eval_max_steps=values["max_iter"],
    ).adapted(solver=SOLVERS[values.get("solver", "anderson")])


def state_dict(
    tensors: Mapping[str, Tensor], config: LanguageConfig, order: list[int], source: Path
) -> dict[str, Tensor]:
    """The weights of our model from those of the public code.

    Args:
        tensors: By their names there.
        config: Of the model.
        order: The number there of each of our tokens; numbers that it lacks stay.
        source: Where the tensors are from, for messages.

    Raises:
        CheckpointError: Tensors are missing, or of another shape or type, or belong to none.
    """
    model = config.model
    shapes = _shapes(config)
    _check(tensors, shapes, source)
    _check_positions(tensors.get("freqs_cis"), config, source)
    rows = torch.tensor([*order, *range(len(order), config.data.vocabulary)])
    embedding = tensors["transformer.wte.weight"]
    found = {
        "vocabulary.embedding.weight": embedding[rows],
        "vocabulary.norm.weight": tensors["transformer.ln_f.weight"],
    }
    head = tensors.get("lm_head.weight", embedding)
    if not model.tied:
        found["vocabulary.head.weight"] = head[rows]
    elif not torch.equal(head, embedding):
        raise CheckpointError(
            f"{source} has a `lm_head.weight` other than the embedding, and `tie_embeddings` is "
            "true. Use the configuration that was released with the weights."
        )
    for ours, theirs, count in _stacks(config):
        for block in range(count):
            found |= _block(tensors, f"{theirs}.{block}.", f"{ours}.{block}.", model.num_heads)
    return found


def _stacks(config: LanguageConfig) -> list[tuple[str, str, int]]:
    """Our name, theirs, and the number of blocks of the backbone and of the refiner."""
    return [
        ("attractor.backbone.blocks", "transformer.prelude", config.model.backbone_blocks),
        ("attractor.refiner.module.blocks.blocks", "transformer.core_block",
         config.model.refiner_blocks),
    ]  # fmt: skip


def _block(
    tensors: Mapping[str, Tensor], theirs: str, ours: str, num_heads: int
) -> dict[str, Tensor]:
    """The weights of a block."""
    parts = [tensors[f"{theirs}attn.c_{name}.weight"] for name in "qkv"]
    halves = [each.unflatten(0, (num_heads, -1, 2)).transpose(1, 2) for each in parts[:2]]
    qkv = torch.cat([*(each.flatten(0, 2) for each in halves), parts[2]])
    found = {
        "mixer.qkv.weight": qkv,
        "mixer.out.weight": tensors[f"{theirs}attn.c_proj.weight"],
        "mlp.into.weight": tensors[f"{theirs}mlp.fc.weight"],
        "mlp.out.weight": tensors[f"{theirs}mlp.proj.weight"] / 2,
        "mixer_norm.weight": tensors[f"{theirs}norm_1.weight"],
        "mlp_norm.weight": tensors[f"{theirs}norm_2.weight"],
    }
    if f"{theirs}raw_gamma_attn" in tensors:
        gates = [tensors[f"{theirs}raw_gamma_{name}"] for name in ("attn", "mlp")]
        found["raw_gates"] = torch.stack(gates)
    return {f"{ours}{name}": tensor for name, tensor in found.items()}


def _shapes(config: LanguageConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the public code that a model needs, and their shapes."""
    width, vocabulary = config.model.width, config.data.vocabulary
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocabulary, width),
        "transformer.ln_f.weight": (width,),
    }
    if not config.model.tied:
        shapes["lm_head.weight"] = (vocabulary, width)
    matrices = dict.fromkeys(("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj"), (width, width))
    matrices |= {"mlp.fc": (4 * width, width), "mlp.proj": (width, 4 * width)}
    for _, name, count in _stacks(config):
        gates = ("raw_gamma_attn", "raw_gamma_mlp") if name.endswith("core_block") else ()
        for block in range(count):
            before = f"{name}.{block}."
            shapes |= {f"{before}{part}.weight": shape for part, shape in matrices.items()}
            shapes |= {f"{before}{part}.weight": (width,) for part in ("norm_1", "norm_2")}
            shapes |= {f"{before}{part}": (width,) for part in gates}
    return shapes


def _check(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> None:
    """Check names, shapes and types.

    Raises:
        CheckpointError: Some are wrong.
    """
    known = {*shapes, "lm_head.weight", "freqs_cis"}
    odd = {
        "missing": [name for name in shapes if name not in tensors],
        "not of such a model": [name for name in tensors if name not in known],
        "of another shape or type": [
            f"{name} ({tuple(tensors[name].shape)} {tensors[name].dtype} instead of {shape})"
            for name, shape in shapes.items()
            if name in tensors
            and (tuple(tensors[name].shape) != shape or not tensors[name].is_floating_point())
        ],
    }
    parts = [
        f"{problem}: {', '.join(name[:150] for name in names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for problem, names in odd.items()
        if names
    ]
    if parts:
        raise CheckpointError(
            f"The weights in {source} are not those of an Attractor of {CONFIG}. "
            f"{'; '.join(parts)}. Use the two files that were released together."
        )


def _check_positions(angles: Tensor | None, config: LanguageConfig, source: Path) -> None:
    """Check that the rotary factors in a file, if there are any, have the base of `config.json`.

    Raises:
        CheckpointError: They have another one.
    """
    if angles is None:
        return
    pairs = config.model.width // config.model.num_heads // 2
    rates = config.model.rope_base ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    expected = torch.stack((rates.cos(), rates.sin()), -1)
    second = (
        angles.float().reshape(-1, pairs, 2)[1:2] if angles.numel() % (2 * pairs) == 0 else None
    )
    if second is None or not len(second) or not torch.allclose(second[0], expected, atol=1e-2):
        raise CheckpointError(
            f"The rotary positions in {source} (`freqs_cis`) are not those of the base "
            f"{config.model.rope_base:g}. Write the base that they have into `rope_settings` of "
            f"{CONFIG}, as `rope_base`."
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({brief(error)}). Name the folder of a released model, with "
            f"{CONFIG} and {' or '.join(WEIGHTS)}."
        ) from error
    return parse_object(text, path, "options")


def _read_tokenizer(folder: Path, named: Path | None) -> ReleasedTokenizer:
    tokenizers_package()
    path = named or folder / TOKENIZER
    try:
        return ReleasedTokenizer.of_file(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"There is no tokenizer at {path} ({brief(error)}). It was not released in the public "
            f"code: put the {TOKENIZER} that the model was trained with into {folder}, or name it "
            "with `--tokenizer`."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {brief(error)}") from error


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a folder, and their file; nothing in the file is run."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder} has no weights: it needs {' or '.join(WEIGHTS)}. Download all files of the "
            "model."
        )
    if path.suffix == ".safetensors":
        return read_tensors(path)[0], path
    found = read_pickle(path, "If it is damaged, download it again.")
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise CheckpointError(
            f"{path} holds something else than named tensors. Use the file that was released, not "
            "a state of training."
        )
    return found, path

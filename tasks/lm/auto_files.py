"""The files from which the package `transformers` makes a model and its tokenizer.

They are written without that package. `tasks.lm.auto` reads them.
"""

import json
from pathlib import Path
from typing import Any

from tasks.lm.tokenizer import END, Tokenizer, numbered_as_ours

MODEL_TYPE = "attractor-lm"
MODULE = "modeling_attractor"
CONFIG_CLASS, MODEL_CLASS = "AttractorConfig", "AttractorForCausalLM"
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.{CONFIG_CLASS}",
    "AutoModelForCausalLM": f"{MODULE}.{MODEL_CLASS}",
}
# For programs that do not import this project by themselves, with `trust_remote_code=True`. The
# package copies the file elsewhere and looks for what it imports in the environment.
CODE = f'''"""Loads the model with the package `attractor-models`, which must be installed."""

from tasks.lm.auto import {CONFIG_CLASS}, {MODEL_CLASS}

__all__ = ["{CONFIG_CLASS}", "{MODEL_CLASS}"]
'''


def write_auto_files(
    folder: Path, settings: dict[str, Any], tokenizer: Tokenizer, context: int
) -> None:
    """Write all files but the weights.

    Args:
        folder: The folder, which exists.
        settings: A `LanguageConfig` as JSON values.
        tokenizer: The model's.
        context: Tokens of a sequence in training.
    """
    fast, end = numbered_as_ours(tokenizer)
    tokens = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    config = {
        "model_type": MODEL_TYPE,
        "architectures": [MODEL_CLASS],
        "auto_map": AUTO_MAP,
        "dtype": "float32",
        **tokens,
        "settings": settings,
        "tokenizer": tokenizer.to_json(),
    }
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "bos_token": end, "eos_token": end, "pad_token": end,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # The name of the end of text is ordinary text where it occurs in one, as in training.
        "split_special_tokens": True,
    }  # fmt: skip
    texts = {
        "config.json": config, "generation_config.json": tokens, "tokenizer_config.json": options
    }  # fmt: skip
    for name, values in texts.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    (folder / "tokenizer.json").write_text(fast.to_str(), "utf-8")
    write_code(folder)


def write_code(folder: Path) -> None:
    """Write the module that `auto_map` names."""
    (folder / f"{MODULE}.py").write_text(CODE, "utf-8")

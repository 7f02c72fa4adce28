"""Checkpoints and Hub folders of strangers, whose meta data do not fit their tensors; see `entry`.

Whatever they claim, the model that is loaded has the weights of the file, or a `ValueError` refuses
them, without much memory.
"""

import json
import shutil

import atheris
import torch
from entry import changed, folder, fuzz, instrumented

with instrumented("tasks.checkpoints", "tasks.puzzles.config", "tasks.lm.config", "tasks.runs",
                  "tasks.training.options", "models"):  # fmt: skip
    from tasks.checkpoints.checkpoint import Checkpoint
    from tasks.lm.config import LanguageConfig
    from tasks.lm.hub import PretrainedLM
    from tasks.runs import load_model
    from tasks.sudoku.config import SudokuConfig
    from tasks.sudoku.task import SudokuTask

PATH, HUB = folder("checkpoints") / "input.safetensors", folder("checkpoints") / "hub"


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint of this model."""
    return {f"module.{name}": tensor for name, tensor in model.state_dict().items()}


GRID = SudokuConfig.of(side=4, min_clues=6, max_clues=8, width=8)
GRID_META = {"task": "sudoku", "preset": "tiny", "config": GRID.to_json(), "history": []}
GRID_WEIGHTS = weights(GRID.build())
TEXT = LanguageConfig.of(vocabulary=257, width=16, num_heads=2, backbone_blocks=1, context=16)
TEXT_META = {"config": TEXT.to_json(), "tokenizer": ""}
TEXT_WEIGHTS = weights(TEXT.build())


def one_input(data: bytes) -> None:
    """A checkpoint of Sudokus, one of a language model, or a folder in the Hub's form."""
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.ConsumeIntInRange(0, 2)
    try:
        if kind == 0:
            Checkpoint({"average": GRID_WEIGHTS}, changed(GRID_META, provider)).save(PATH)
            load_model(SudokuTask(), PATH, device="cpu")
        elif kind == 1:
            Checkpoint({"average": TEXT_WEIGHTS}, changed(TEXT_META, provider)).save(PATH)
            PretrainedLM.of_checkpoint(PATH)
        else:
            settings = {"settings": TEXT.to_json(), "tokenizer": ""}
            (HUB / "config.json").write_text(json.dumps(changed(settings, provider)))
            PretrainedLM.from_pretrained(HUB)
    except ValueError:
        return


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(HUB, ignore_errors=True)
    PretrainedLM(TEXT.to_json(), "").save_pretrained(HUB)
    fuzz(one_input, "checkpoints", [bytes(range(i, i + 40)) for i in range(0, 200, 40)])

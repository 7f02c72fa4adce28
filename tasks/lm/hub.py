"""A trained language model as a folder in the format of the Hugging Face Hub.

The folder has `config.json` and `model.safetensors`; `PretrainedLM.push_to_hub` uploads them. With
the other files in it, it is also a model for the package `transformers`: see `tasks.lm.auto`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import LanguageOutput
from tasks.checkpoints.checkpoint import Checkpoint, bounded_by, load_weights
from tasks.checkpoints.file import CheckpointError, parse_object, read_tensors, refusing
from tasks.lm.auto_files import write_auto_files
from tasks.lm.config import LanguageConfig, LanguageTask
from tasks.lm.generate import Sampling, generate
from tasks.lm.tokenizer import END, load_tokenizer, read_tokenizer
from tasks.runs import averaged_weights, read_config

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
except ImportError as error:
    raise ValueError(
        "Folders in the Hub's form need the package `huggingface_hub`: install the extra with "
        "`pip install 'attractor-models[lm]'`."
    ) from error

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# With a tokenizer of a hundred thousand tokens, a configuration has some 10 MB.
MAX_CONFIG = 2**26


class PretrainedLM(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="attractor-models",
    tags=["attractor-model", "text-generation"],
):
    """A model with its tokenizer; has `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Args:
        settings: A `LanguageConfig` as JSON values.
        tokenizer: The tokenizer's state.

    Example:
        >>> model = PretrainedLM(LanguageConfig.of(vocabulary=257, width=40).to_json(), "").eval()
        >>> len(model.write("def ", tokens=3)) >= 4
        True
    """

    def __init__(self, settings: dict[str, Any], tokenizer: str):
        super().__init__()
        self.settings = LanguageConfig.from_json(settings)
        self.tokenizer = load_tokenizer(tokenizer, self.settings.data.vocabulary)
        self.model: Any = self.settings.build()
        if self.model.solving is not None:
            self.model.solving.solver = self.settings.solve.evaluation_solver()

    @classmethod
    def of_checkpoint(cls, path: Path) -> "PretrainedLM":
        """The averaged model of a checkpoint of `python -m tasks.lm`.

        Raises:
            CheckpointError: The file is none, or of another version.
        """
        checkpoint = Checkpoint.load(path)
        config = read_config(LanguageTask, checkpoint)
        read_tokenizer(checkpoint, config)
        weights = averaged_weights(checkpoint)
        with bounded_by(weights, config, path):
            found = cls(checkpoint.value("config"), checkpoint.value("tokenizer"))
        load_weights(found.model, weights, path)
        return found.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str = "cpu",
        **download: Any,
    ) -> "PretrainedLM":
        """The model in a folder, or of the Hub, with exactly the weights of its file.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the Hub.
            map_location: The device for the model.
            **download: Options of `huggingface_hub.snapshot_download`, such as `revision`.

        Raises:
            CheckpointError: A file is missing or broken, or the two do not belong together.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            name = str(pretrained_model_name_or_path)
            folder = Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **download))
        values, config = read_config_file(folder / CONFIG)
        weights, _ = read_tensors(folder / WEIGHTS)
        with bounded_by(weights, config, folder):
            found = cls(values["settings"], values["tokenizer"])
        load_weights(found, weights, folder / WEIGHTS)
        return found.to(map_location).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights, and the files by which `transformers` knows the model."""
        super()._save_pretrained(save_directory)
        write_auto_files(
            save_directory, self.settings.to_json(), self.tokenizer, self.settings.data.context
        )

    def forward(self, ids: Tensor, max_steps: int | None = None) -> LanguageOutput:
        """Logits of every token; see the model's own `forward`."""
        return self.model(ids, max_steps=max_steps)

    @torch.no_grad()
    def write(
        self, prompt: str, tokens: int = 100, sampling: Sampling | None = None,
        max_steps: int | None = None,
    ) -> str:  # fmt: skip
        """Generate text after a prompt; return both."""
        drawn = generate(
            self.model,
            [[END, *self.tokenizer.encode(prompt)]],
            tokens=tokens,
            context=self.settings.data.context,
            sampling=sampling or Sampling(),
            max_steps=max_steps,
        )
        return prompt + self.tokenizer.decode([int(token) for token in drawn])


def read_config_file(path: Path) -> tuple[dict[str, Any], LanguageConfig]:
    """The arguments of `PretrainedLM` in a file, and the first of them as a configuration.

    Raises:
        CheckpointError: It is missing, broken, or that of another kind of model.
    """
    try:
        size = path.stat().st_size
        text = path.read_text("utf-8") if size <= MAX_CONFIG else ""
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Name another folder.") from error
    if size > MAX_CONFIG:
        raise CheckpointError(f"{path} has {size:,} bytes, more than any configuration of ours.")
    values = parse_object(text, path, "options")
    if not isinstance(values.get("settings"), dict) or "tokenizer" not in values:
        raise CheckpointError(
            f"{path} is not the configuration of a language model of this project: it has no "
            "`settings` and `tokenizer`. `python -m tasks.lm export FOLDER` writes them."
        )
    with refusing(path, "is damaged, or comes from another version"):
        config = LanguageConfig.from_json(values["settings"])
        load_tokenizer(values["tokenizer"], config.data.vocabulary)
    return values, config

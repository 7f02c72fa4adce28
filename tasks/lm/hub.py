"""A trained language model as a folder in the format of the Hugging Face Hub.

The folder has `config.json` and `model.safetensors`; `PretrainedLM.push_to_hub` uploads them.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import LanguageOutput
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.config import LanguageConfig
from tasks.lm.generate import Sampling, generate
from tasks.lm.tokenizer import END, load_tokenizer
from tasks.runs import load_average

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise ValueError(
        "Folders in the Hub's form need the package `huggingface_hub`: install the extra with "
        "`pip install 'attractor-models[lm]'`."
    ) from error


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
        self.model: Any = self.settings.build()
        if self.model.solving is not None:
            self.model.solving.solver = self.settings.solve.build_solver()
        self.tokenizer = load_tokenizer(tokenizer)

    @classmethod
    def of_checkpoint(cls, path: Path) -> "PretrainedLM":
        """The averaged model of a checkpoint of `python -m tasks.lm`.

        Raises:
            CheckpointError: The file is none, or of another version.
        """
        checkpoint = Checkpoint.load(path)
        found = cls(checkpoint.meta["config"], checkpoint.meta["tokenizer"])
        load_average(found.model, checkpoint, path)
        return found.eval()

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

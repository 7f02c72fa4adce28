"""Trained language models as models of the package `transformers`.

Importing this module registers them, so that a folder of `python -m tasks.lm export FOLDER` works
wherever that package takes one: `generate` with sampling and beams, `pipeline`, `Trainer`, and the
backend `hf` of the lm-evaluation-harness.

    import tasks.lm.auto
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

References:
    T. Wolf et al., Transformers, EMNLP 2020 demos, arXiv:1910.03771.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models import LanguageOutput
from tasks.checkpoints.checkpoint import bounded_by
from tasks.checkpoints.file import CheckpointError, read_tensors, refusing
from tasks.lm.auto_files import AUTO_MAP, MODEL_TYPE, write_code
from tasks.lm.config import LanguageConfig
from tasks.lm.hub import CONFIG, WEIGHTS, read_config_file
from tasks.lm.tokenizer import END

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.utils.deprecation import deprecate_kwarg
    from transformers.utils.generic import can_return_tuple
    from transformers.utils.hub import cached_file

    from tasks.lm.equilibrium_cache import EquilibriumCache

    if "cache" not in CausalLMOutputWithPast.__dataclass_fields__:
        raise ImportError("its models have no `cache`, which had another name before")
except ImportError as error:
    raise ValueError(
        f"`tasks.lm.auto` needs the package `transformers`, 5.24 or later ({error}): install the "
        "extra with `pip install --upgrade 'attractor-models[lm]'`."
    ) from error

# What `from_pretrained` takes for finding files, wherever they are.
FINDING = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder",
           "token")  # fmt: skip
# What callers pass to every model: the number of tokens in a batch, and what none of ours has.
COUNT, ABSENT = "num_items_in_batch", ("output_attentions", "output_hidden_states")


class AttractorConfig(PreTrainedConfig):
    """The configuration of a language model of this project.

    Attributes:
        settings: A `LanguageConfig` as JSON values; by default one over bytes.
        tokenizer: The tokenizer's state; see `tasks.lm.tokenizer.Tokenizer.to_json`.

    Raises:
        CheckpointError: The settings are none of this version.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "num_steps", "converged"]

    settings: dict[str, Any] | None = None
    tokenizer: str = ""
    bos_token_id: int | None = END
    eos_token_id: int | list[int] | None = END
    pad_token_id: int | None = END

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.settings is None:
            self.settings = LanguageConfig.of(vocabulary=END + 1).to_json()
        self.auto_map = dict(AUTO_MAP)
        _parsed(self.settings)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: `auto_map` names a file of ours, which folders have."""

    @property
    def language(self) -> LanguageConfig:
        """The settings as a configuration of this project."""
        return _parsed(self.settings)

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the vocabulary."""
        return self.language.data.vocabulary

    @property
    def n_ctx(self) -> int:
        """The most tokens that a prediction is made from in training, generation and evaluation."""
        return self.language.data.context

    @property
    def hidden_size(self) -> int:
        """Numbers per token."""
        return self.language.model.width

    @property
    def num_attention_heads(self) -> int:
        """Heads of the attention."""
        return self.language.model.num_heads

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks, those that are solved included."""
        return self.language.model.backbone_blocks + self.language.model.refiner_blocks


@dataclass
class SolvedOutput(CausalLMOutputWithPast):
    """As any causal language model gives it, and what is known of the solve of each token.

    Attributes:
        num_steps: Solver updates of each token, for those of the logits; None without a solve.
        converged: Whether its residual is within the tolerance; None without a solve.
    """

    num_steps: Tensor | None = None
    converged: Tensor | None = None


class AttractorForCausalLM(PreTrainedModel, GenerationMixin):
    """Any language model of this project, for the package `transformers`.

    `generate` keeps the equilibria of at most a context of tokens (see `EquilibriumCache`). Greedy
    text is that of `tasks.lm.generate`, but that it stops at an end of text by default.
    """

    config_class = AttractorConfig
    config: AttractorConfig
    main_input_name = "input_ids"

    def __init__(self, config: AttractorConfig):
        super().__init__(config)
        self.model: Any = config.language.build()
        solve = config.language.solve
        self.train_steps = None if self.model.solving is None else solve.train_steps
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *model_args: Any, **options: Any
    ) -> "AttractorForCausalLM":
        """The model in a folder, or of the Hub, with exactly the weights of its file.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the Hub.
            *model_args: See `PreTrainedModel.from_pretrained`.
            **options: See `PreTrainedModel.from_pretrained`.

        Raises:
            CheckpointError: A file is broken, or the two do not belong together.
            OSError: A file is missing.
        """
        if options.get("state_dict") is None:
            where = {name: options[name] for name in FINDING if name in options}
            config, weights = (
                _find(pretrained_model_name_or_path, name, where) for name in (CONFIG, WEIGHTS)
            )
            _check(config, weights, options.get("config"))
        options["use_safetensors"] = True  # a pickle runs what is in it
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **options)

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """Write the model as a folder, without its tokenizer; see `PreTrainedModel`."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_code(Path(save_directory))
        super().save_pretrained(save_directory, *arguments, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """See `AttractorConfig.register_for_auto_class`."""

    @deprecate_kwarg("past_key_values", version="5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: EquilibriumCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        max_steps: int | None = None,
        **options: Any,
    ) -> SolvedOutput:
        """Logits of every token, and the loss.

        Args:
            input_ids: Shape (B, T): tokens, the new ones where there is a cache.
            attention_mask: Shape (B, T), or as much longer as there were tokens before: 0 for
                padding, which lies at an end of each text.
            cache: The tokens before, which are neither read nor solved again.
            labels: Shape (B, T): the tokens themselves, or -100 for those not to be predicted.
            use_cache: Give a cache back. By default only where one is given.
            logits_to_keep: Give the logits of so many of the last tokens, or of these positions;
                0 means all.
            max_steps: Budget of solver updates, or number of loops; by default the model's, and in
                training that of its recipe.
            **options: What other models take, and has no effect here.

        Raises:
            TypeError: An option would have an effect on another model.
            ValueError: The padding is elsewhere, or the cache is that of another model.
        """
        counted = {COUNT: options.pop(COUNT)} if COUNT in options else {}
        if odd := [n for n, value in options.items() if n not in ABSENT or value]:
            raise TypeError(f"This model has no options {', '.join(sorted(odd))}: leave them out.")
        valid = _mask(input_ids, attention_mask)
        if max_steps is None and self.training:
            max_steps = self.train_steps
        if cache is None and use_cache:
            cache = self.new_cache()
        if cache is None:
            out = self._read(input_ids, valid, max_steps)
        elif isinstance(cache, EquilibriumCache):
            whole, last = input_ids.shape[1], logits_to_keep
            needed = min(last, whole) if isinstance(last, int) and last else whole
            out = cache.kept.read(self.model, input_ids, valid, needed, max_steps)
        else:
            raise ValueError(
                f"This model keeps equilibria, not keys alone: got a {type(cache).__name__}. Leave "
                "it out, or begin with `model.new_cache()`."
            )
        shown = out.logits, *_evidence(out)
        logits, steps, converged = (_kept(each, logits_to_keep) for each in shown)
        assert logits is not None
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **counted)
        return SolvedOutput(
            loss=loss, logits=logits, cache=cache, num_steps=steps, converged=converged
        )

    def new_cache(self) -> EquilibriumCache:
        """A cache without tokens."""
        return EquilibriumCache(self.config.n_ctx)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.model.vocabulary.embedding

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *_: Any, **__: Any
    ) -> nn.Embedding:
        """Give the embedding; the size of a vocabulary is part of its model.

        Raises:
            ValueError: Another size is asked for.
        """
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(
                f"The vocabulary has {self.config.vocab_size:,} tokens and cannot become "
                f"{new_num_tokens:,}: train a model with `--vocabulary` instead."
            )
        return self.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as our own classes draw them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Let `generate` begin without a cache: `forward` makes one."""
        return False

    def _read(self, ids: Tensor, valid: Tensor, max_steps: int | None) -> LanguageOutput:
        """Logits of whole texts, padded at their ends if at all."""
        begins = (valid[:, 1:] > valid[:, :-1]).any(1)
        if not bool(begins.any()):
            # What comes after a text changes nothing of it.
            return self.model(ids, max_steps=max_steps)
        if bool((begins & (valid[:, 1:] < valid[:, :-1]).any(1)).any()):
            raise ValueError("`attention_mask` is 0 within a text: pad at one end of it.")
        return self.model.extend(ids, self.model.empty_cache(valid), max_steps=max_steps)[0]


def _parsed(settings: Any) -> LanguageConfig:
    with refusing("`settings` of a configuration", "is damaged, or of another version"):
        return LanguageConfig.from_json(settings)


def _find(name: Any, file: str, where: dict[str, Any]) -> Path:
    found = cached_file(name, file, **where)
    assert found is not None  # `cached_file` raises an OSError itself
    return Path(found)


def _check(config_path: Path, weights_path: Path, config: Any) -> None:
    """Compare weights with their configuration before any memory is taken for the model.

    Args:
        config_path: The configuration beside the weights.
        weights_path: The weights.
        config: What the model is built with, if it is not what is in the file.

    Raises:
        CheckpointError: They are damaged, or do not belong together.
    """
    _, language = read_config_file(config_path)
    if isinstance(config, AttractorConfig):
        language = config.language
    weights, _ = read_tensors(weights_path)
    with bounded_by(weights, language, weights_path.parent), torch.device("meta"):
        expected = language.build().state_dict()
    ours = {f"model.{name}": tensor.shape for name, tensor in expected.items()}
    theirs = {name: tensor.shape for name, tensor in weights.items()}
    if odd := sorted(n for n in ours.keys() | theirs if ours.get(n) != theirs.get(n)):
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(
            f"The weights in {weights_path} do not fit the configuration beside them: "
            f"{', '.join(odd[:3])}{more} are missing, of another shape, or not of this model. Use "
            "the files that belong together, or export again."
        )


def _mask(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Which of the tokens are no padding.

    Raises:
        ValueError: The mask has another shape.
    """
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.ndim != 2 or len(mask) != len(ids) or mask.shape[1] < ids.shape[1]:
        raise ValueError(
            f"`attention_mask` must have a row for each text and an entry for each token: got "
            f"{tuple(mask.shape)} for tokens of shape {tuple(ids.shape)}."
        )
    return mask[:, mask.shape[1] - ids.shape[1] :].bool()


def _evidence(out: LanguageOutput) -> tuple[Tensor | None, Tensor | None]:
    if out.solution is None:
        return None, None
    return out.solution.num_steps, out.solution.converged


def _kept(values: Tensor | None, which: int | Tensor) -> Tensor | None:
    """The values of the last tokens, of those at these positions, or of all for 0."""
    if values is None:
        return None
    return values[:, -which:] if isinstance(which, int) else values[:, which]


AutoConfig.register(MODEL_TYPE, AttractorConfig)
AutoModelForCausalLM.register(AttractorConfig, AttractorForCausalLM)

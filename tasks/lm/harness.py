"""A trained model in the lm-evaluation-harness: its tasks, with our scores and our text.

The harness registers the model under the name "attractor". It needs the extra `lm-eval`.

References:
    L. Gao et al., A framework for few-shot language model evaluation,
    https://github.com/EleutherAI/lm-evaluation-harness.
"""

import difflib
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import (
    get_rolling_token_windows,
    handle_non_serializable,
    make_disjoint_window,
    make_table,
)

from tasks.device import choose_device
from tasks.lm.generate import Sampling, generate
from tasks.lm.hub import PretrainedLM
from tasks.lm.tokenizer import END
from tasks.output import SILENT, Progress

# The files of CORE, see `tasks.lm.core`: a folder `eval_bundle`.
BUNDLE = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
# Tokens that a task which does not say gets; the harness's own default.
MAX_TOKENS = 256

# What a task may ask of generation; of anything else it is warned that it has no effect.
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}

Scored = tuple[list[int], list[int]]
"""Tokens to see, at least one, and the tokens after them, which are scored."""


class HarnessLM(TemplateLM):
    """A model as the harness calls it: scores of continuations and of whole texts, and generation.

    Every text begins after an end of text, as in training. Of what does not fit the context,
    the model sees the last tokens.

    Args:
        pretrained: A model, a checkpoint of `python -m tasks.lm`, or a folder in the Hub's form.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: Texts at a time.
        max_steps: Budget of solver updates; by default the model's.

    Raises:
        ValueError: `batch_size` is no number above 0, or the device is unknown.
        CheckpointError: The file is none, or of another version.
    """

    def __init__(
        self,
        pretrained: PretrainedLM | Path | str,
        device: str = "auto",
        batch_size: int | str = 16,
        max_steps: int | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be a whole number above 0, got {batch_size!r}.")
        found = pretrained if isinstance(pretrained, PretrainedLM) else _load(Path(pretrained))
        if max_steps is not None and found.settings.model.name == "transformer":
            raise ValueError("A transformer takes no steps: leave `--max-steps` out.")
        self._device = choose_device(device)
        self.net = found.model.to(self._device).eval()
        self.words, self.context = found.tokenizer, found.settings.data.context
        self.batch_size, self.max_steps = int(batch_size), max_steps
        # Told of each batch.
        self.progress: Progress = SILENT

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which also precedes every text."""
        return END

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The tokens of a text, after an end of text unless `add_special_tokens` is False."""
        before = [] if add_special_tokens is False else [END]
        return before + self.words.encode(string)

    def _encode_pair(self, context: str, continuation: str) -> Scored:
        """Encode as the harness does, but so that exactly the continuation is scored.

        Blanks at the end of a context count as the beginning of what follows. Where a token would
        lie across the join, the two texts are encoded by themselves.
        """
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        before, whole = self.tok_encode(kept), self.tok_encode(kept + continuation)
        if whole[: len(before)] == before:
            return before, whole[len(before) :]
        return before, self.words.encode(continuation)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation, and whether greedy text would be it."""
        return self.scores([(before, after) for _, before, after in requests])

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability (nats) of each text, in windows of `context` tokens."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        scores = iter(self.scores([pair for pairs in windows for pair in pairs], "windows of text"))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each prompt, up to a stop sequence or an end of text."""
        alike: dict[str, list[int]] = defaultdict(list)
        asked: list[Any] = [request.args for request in requests]
        for i, (_, wanted) in enumerate(asked):
            alike[json.dumps(wanted, sort_keys=True)].append(i)
        texts = [""] * len(requests)
        for members in alike.values():
            options: Any = normalize_gen_kwargs(asked[members[0]][1], MAX_TOKENS)
            prompts = {i: self.tok_encode(asked[i][0]) for i in members}
            batches = math.ceil(len(members) / self.batch_size)
            self.progress.begin(f"{len(members):,} texts that are written", batches)
            for batch in self._batches(members, [len(prompts[i]) for i in members]):
                written = self._write([prompts[i] for i in batch], options, seed=batch[0])
                self.progress.advance()
                for i, text in zip(batch, written, strict=True):
                    texts[i] = text
        return texts

    def _windows(self, text: str) -> Iterator[Scored]:
        pairs = get_rolling_token_windows(
            self.words.encode(text), END, max_seq_len=self.context, context_len=1
        )
        return map(make_disjoint_window, pairs)

    def _batches(self, members: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Batches of similar lengths, the longest first, so that memory runs out early if ever."""
        order = [i for _, i in sorted(zip(lengths, members, strict=True), reverse=True)]
        for at in range(0, len(order), self.batch_size):
            yield order[at : at + self.batch_size]

    def scores(
        self, pairs: Sequence[Scored], what: str = "continuations"
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of the second tokens of each, and whether greedy text has them.

        Args:
            pairs: The tokens.
            what: They are, for the progress.
        """
        found = [(0.0, True)] * len(pairs)
        rows = {i: self._row(*pair) for i, pair in enumerate(pairs) if pair[1]}
        self.progress.begin(f"{len(rows):,} {what}", math.ceil(len(rows) / self.batch_size))
        for batch in self._batches(list(rows), [len(row) for row in rows.values()]):
            counts = [len(pairs[i][1]) for i in batch]
            scores = self._score_batch([rows[i] for i in batch], counts)
            for i, score in zip(batch, scores, strict=True):
                found[i] = score
            self.progress.advance()
        return found

    def _row(self, before: list[int], after: list[int]) -> list[int]:
        if len(after) > self.context:
            raise ValueError(
                f"A continuation has {len(after)} tokens, more than the model's context of "
                f"{self.context}: choose tasks with shorter answers, or a model with a longer "
                "context."
            )
        return (before + after)[-self.context - 1 :]

    @torch.no_grad()
    def _score_batch(
        self, rows: list[list[int]], counts: list[int]
    ) -> Iterator[tuple[float, bool]]:
        """Scores of the last `counts` tokens of each row; padding at the end affects no token."""
        longest = max(map(len, rows))
        padded = [row + [END] * (longest - len(row)) for row in rows]
        ids = torch.tensor(padded, device=self._device)
        logits = self.net(ids[:, :-1], max_steps=self.max_steps).logits
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            stop = len(row) - 1
            scores = logits[i, stop - count : stop].float().log_softmax(-1)
            target = ids[i, stop - count + 1 : stop + 1]
            total = scores.gather(-1, target[:, None]).sum().item()
            yield total, bool((scores.argmax(-1) == target).all())

    def _write(self, prompts: list[list[int]], options: dict[str, Any], seed: int) -> list[str]:
        if ignored := sorted(set(options) - KNOWN):
            warnings.warn(
                f"Generation has no options {', '.join(ignored)}: they have no effect.",
                stacklevel=2,
            )
        sampling = Sampling(
            temperature=float(options.get("temperature", 0.0)),
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            seed=seed,
        )
        until = [stop for stop in options["until"] if stop]
        rows: list[list[int]] = [[] for _ in prompts]
        texts, ended = [""] * len(prompts), [False] * len(prompts)
        steps = generate(
            self.net,
            prompts,
            tokens=options["max_gen_toks"],
            context=self.context,
            sampling=sampling,
            max_steps=self.max_steps,
        )
        for drawn in steps:
            for i, token in enumerate(drawn.tolist()):
                if not ended[i] and token != END:
                    rows[i].append(token)
                    texts[i] = self.words.decode(rows[i])
                ended[i] |= token == END or any(stop in texts[i] for stop in until)
            if all(ended):
                break
        return [postprocess_generated_text(text, until, None) for text in texts]


register_model("attractor")(HarnessLM)


def run_tasks(
    model: HarnessLM, names: Sequence[str], limit: int | None = None
) -> tuple[dict[str, Any], str]:
    """Evaluate on tasks of the harness, which download their data.

    Args:
        model: The model.
        names: Tasks, groups or tags of the harness, or YAML files that describe one.
        limit: Only so many examples of each.

    Returns:
        Metrics by task, as JSON values, and the harness's own table.

    Raises:
        ValueError: There is no such task.
    """
    files = [name for name in names if Path(name).is_file()]
    # To know its own tasks, the harness reads thousands of files.
    manager = TaskManager(include_defaults=len(files) < len(names))
    for name in names:
        if name not in files and name not in manager.all_tasks:
            raise ValueError(_unknown(name, manager.all_tasks))
    found: Any = simple_evaluate(
        model, tasks=list(names), limit=limit, task_manager=manager, log_samples=False
    )
    parts = ["results", "groups"] if "groups" in found else ["results"]
    table = "\n".join(str(make_table(found, part)) for part in parts)
    return json.loads(json.dumps(found["results"], default=handle_non_serializable)), table


def _unknown(name: str, known: Sequence[str]) -> str:
    """What to say of a task that the harness does not have."""
    if Path(name).suffix in (".yaml", ".yml"):
        return f"There is no file {name}, which `--tasks` names. Name one that describes a task."
    if name != Path(name).name or "bundle" in name:
        return (
            f"There is no folder {name} with the tasks of CORE, which `--tasks` names. Unpack "
            f"{BUNDLE} to there, or name tasks of the harness."
        )
    close = difflib.get_close_matches(name, known)
    guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return (
        f"The harness has no task {name!r}.{guess} `lm-eval ls tasks` lists them; a YAML file that "
        "describes one can be named as well, and for CORE the folder that it is unpacked to."
    )


def _load(path: Path) -> PretrainedLM:
    if path.is_dir():
        return PretrainedLM.from_pretrained(path).eval()
    return PretrainedLM.of_checkpoint(path)

"""CORE: 22 tasks whose accuracies, centred at that of guessing, are averaged.

It is computed as by nanochat and by the public code of the Attractor, from the same files: a folder
with `core.yaml` (the tasks), `eval_meta_data.csv` (accuracies of guessing, in %) and `eval_data`.
A task gives its examples in one of three forms:

    multiple_choice      one question, and several answers: that of the smallest mean loss
    schema               several contexts, and one continuation: likewise
    language_modeling    right if greedy text is the continuation

References:
    J. Li et al., DataComp-LM, NeurIPS 2024, arXiv:2406.11794, sec. 3.5 and app. G (CORE).
    `nanochat/core_eval.py` of https://github.com/karpathy/nanochat.
"""

import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import yaml

from tasks.lm.harness import BUNDLE, HarnessLM, Scored

TASKS, GUESSING, DATA = "core.yaml", "eval_meta_data.csv", "eval_data"
# Of the draws of examples that precede a question, and of the order, as in the public code.
SEEDS, ORDER = (1234, 2345, 3456), 1337


@dataclass(frozen=True)
class CoreTask:
    """One of the tasks.

    Attributes:
        label: Its name.
        form: See the head of this file.
        shots: Solved examples before each question.
        delimiter: Between a question and its answer.
        guessing: The accuracy of guessing, from 0 to 1.
        examples: The questions.
    """

    label: str
    form: str
    shots: int
    delimiter: str
    guessing: float
    examples: list[dict[str, Any]]

    def centred(self, accuracy: float) -> float:
        """0 for guessing, 1 for all right."""
        return (accuracy - self.guessing) / (1 - self.guessing)


def read_bundle(folder: Path, limit: int | None = None) -> list[CoreTask]:
    """The tasks in a folder, each in the order of the public code.

    Args:
        folder: See the head of this file.
        limit: Only so many examples of each.

    Raises:
        ValueError: A file is missing, or is not what it should be.
    """
    try:
        wanted = yaml.safe_load((folder / TASKS).read_text(encoding="utf-8"))["icl_tasks"]
        with (folder / GUESSING).open(encoding="utf-8", newline="") as file:
            rows = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
        return [_read_task(folder, task, rows, limit) for task in wanted]
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{folder} does not hold the tasks of CORE ({' '.join(str(error).split())[:300]}). "
            f"Unpack {BUNDLE} anew."
        ) from error


def _read_task(
    folder: Path, task: dict[str, Any], guessing: dict[str, float], limit: int | None
) -> CoreTask:
    if (form := task["icl_task_type"]) not in FORMS:
        raise ValueError(f"{task['label']} has the unknown form {form!r}")
    # Only at line feeds: a JSON string may hold raw what else ends a line.
    lines = (folder / DATA / task["dataset_uri"]).read_text(encoding="utf-8").split("\n")
    examples = [json.loads(line) for line in lines if line.strip()]
    if not examples:
        raise ValueError(f"{task['label']} has no examples")
    random.Random(ORDER).shuffle(examples)
    return CoreTask(
        label=task["label"],
        form=form,
        shots=task["num_fewshot"][0],
        delimiter=task.get("continuation_delimiter", " "),
        guessing=guessing[task["label"]] / 100,
        examples=examples[:limit],
    )


def run_core(
    model: HarnessLM, folder: Path, limit: int | None = None, seeds: Sequence[int] = SEEDS
) -> tuple[dict[str, Any], str]:
    """Evaluate a model on CORE.

    Args:
        model: The model.
        folder: See the head of this file.
        limit: Only so many examples of each task.
        seeds: Of the draws of solved examples; results are means over them.

    Returns:
        Accuracies, those centred at guessing, and their mean "core", as JSON values; and a table in
        Markdown.

    Raises:
        ValueError: The folder does not hold the tasks.
    """
    results: dict[str, dict[str, Any]] = {}
    by_seed = [0.0] * len(seeds)
    tasks = read_bundle(folder, limit)
    table = [
        "| task | shots | examples | accuracy | centred |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in tasks:
        # Without solved examples no seed changes anything.
        drawn = seeds if task.shots else seeds[:1]
        found = [accuracy(model, task, seed) for seed in drawn]
        found *= len(seeds) // len(found)
        centred = task.centred(mean(found))
        results[task.label] = {"accuracy": mean(found), "centred": centred}
        by_seed = [b + task.centred(a) / len(tasks) for a, b in zip(found, by_seed, strict=True)]
        counts = f"{task.shots} | {len(task.examples):,}"
        table.append(f"| {task.label} | {counts} | {mean(found):.3f} | {centred:.3f} |")
    core = {"core": mean(by_seed), "spread": pstdev(by_seed), "seeds": list(seeds)}
    table.append(f"| CORE | | | | {core['core']:.4f} |")
    return {**core, "tasks": results}, "\n".join(table)


def accuracy(model: HarnessLM, task: CoreTask, seed: int) -> float:
    """The share of the examples that a model gets right."""
    asked = [list(pairs(model.tok_encode, task, at, seed)) for at in range(len(task.examples))]
    what = f"answers of {task.label}, seed {seed}"
    scores = iter(model.scores([pair for each in asked for pair in each], what))
    right = 0
    for example, each in zip(task.examples, asked, strict=True):
        found = [next(scores) for _ in each]
        if task.form == "language_modeling":
            right += found[0][1]
        else:
            losses = [
                -total / len(after) for (total, _), (_, after) in zip(found, each, strict=True)
            ]
            right += losses.index(min(losses)) == example["gold"]
    return right / len(asked)


def pairs(
    encode: Callable[[str], list[int]], task: CoreTask, at: int, seed: int
) -> Iterator[Scored]:
    """What is scored of an example: its tokens to see, and those after them, for each answer.

    Args:
        encode: From text to tokens.
        task: The task.
        at: The number of the example.
        seed: Of the draw of solved examples.
    """
    others = [i for i in range(len(task.examples)) if i != at]
    drawn = random.Random(seed + at).sample(others, min(task.shots, len(others)))
    shots = [task.examples[i] for i in drawn]
    rows = [encode(text) for text in FORMS[task.form](task.examples[at], shots, task.delimiter)]
    shortest = min(map(len, rows))
    if task.form == "schema":
        same = _common([row[::-1] for row in rows])
        starts = [len(row) - max(1, min(same, shortest - 1)) for row in rows]
    else:
        # At least one token of each answer is scored.
        starts = [min(_common(rows), shortest - (task.form == "multiple_choice"))] * len(rows)
    for row, start in list(zip(rows, starts, strict=True))[task.form == "language_modeling" :]:
        yield row[:start], row[start:]


def _common(rows: Sequence[list[int]]) -> int:
    """How many tokens at the beginning are the same in all rows."""
    return next(
        (i for i, each in enumerate(zip(*rows, strict=False)) if len(set(each)) > 1),
        min(map(len, rows)),
    )


def _choices(item: dict[str, Any], shots: Sequence[dict[str, Any]], delimiter: str) -> list[str]:
    before = "".join(f"{s['query']}{delimiter}{s['choices'][s['gold']]}\n\n" for s in shots)
    return [f"{before}{item['query']}{delimiter}{choice}" for choice in item["choices"]]


def _schema(item: dict[str, Any], shots: Sequence[dict[str, Any]], delimiter: str) -> list[str]:
    before = "".join(
        f"{s['context_options'][s['gold']]}{delimiter}{s['continuation']}\n\n" for s in shots
    )
    return [f"{before}{text}{delimiter}{item['continuation']}" for text in item["context_options"]]


def _language(item: dict[str, Any], shots: Sequence[dict[str, Any]], delimiter: str) -> list[str]:
    """The prompt, and the prompt with its continuation."""
    before = "".join(f"{s['context'].strip()}{delimiter}{s['continuation']}\n\n" for s in shots)
    prompt = f"{before}{item['context'].strip()}{delimiter}"
    return [prompt.strip(), prompt + item["continuation"]]


FORMS: dict[str, Callable[[dict[str, Any], Sequence[dict[str, Any]], str], list[str]]] = {
    "multiple_choice": _choices,
    "schema": _schema,
    "language_modeling": _language,
}

"""CORE: prompts, scores and means as in the public code, whose figures are recorded here."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.__main__ import main
from tasks.lm.config import LanguageConfig
from tasks.lm.tokenizer import END, ByteTokenizer

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from tasks.lm.core import FORMS, CoreTask, accuracy, pairs, read_bundle, run_core
from tasks.lm.harness import HarnessLM
from tasks.lm.hub import PretrainedLM

CHOICES = [
    {"query": "2 + 2 =", "choices": ["4", "five"], "gold": 0},
    {"query": "the sky is", "choices": ["green", "greener", "blue"], "gold": 2},
    {"query": "a", "choices": ["b", "c"], "gold": 1},
]
SCHEMAS = [
    {"context_options": ["A cat", "A stone"], "continuation": "sleeps.", "gold": 0},
    {"context_options": ["Ice", "Fire"], "continuation": "is hot.", "gold": 1},
]
WORDS = [{"context": " one two ", "continuation": "three"}, {"context": "x", "continuation": "y"}]
CONFIG = LanguageConfig.of(
    vocabulary=257, width=16, num_heads=2, context=200, backbone_blocks=1, rtol=1e-6
)


@pytest.fixture(scope="module")
def pretrained() -> PretrainedLM:
    """A small model with random weights, on bytes."""
    torch.manual_seed(0)
    return PretrainedLM(CONFIG.to_json(), "").eval()


@pytest.fixture
def model(pretrained: PretrainedLM) -> HarnessLM:
    return HarnessLM(pretrained, "cpu", batch_size=4)


def task(form: str, examples: list[dict[str, Any]], shots: int = 0, delimiter: str = " ") -> Any:
    return CoreTask("it", form, shots, delimiter, 0.25, examples)


def write(folder: Path, limit: int = 99) -> Path:
    data = folder / "eval_data"
    data.mkdir(parents=True)
    forms = {"multiple_choice": CHOICES, "schema": SCHEMAS, "language_modeling": WORDS}
    rows = ["Eval Task,Task Category,Random baseline"]
    text = "icl_tasks:\n"
    for shots, (form, examples) in enumerate(forms.items()):
        lines = [json.dumps(example) for example in examples[:limit]]
        (data / f"{form}.jsonl").write_text("\n".join(lines) + "\n")
        rows.append(f"{form}_task,words,{20 * shots}")
        text += f"- label: {form}_task\n  dataset_uri: {form}.jsonl\n  num_fewshot: [{shots}]\n"
        text += f"  icl_task_type: {form}\n"
    (folder / "core.yaml").write_text(text)
    (folder / "eval_meta_data.csv").write_text("\n".join(rows))
    return folder


def test_prompts_are_those_of_the_public_templates() -> None:
    """Recorded from `render_prompts_mc`, `_schema` and `_lm` of nanochat's `core_eval.py`."""
    assert FORMS["multiple_choice"](CHOICES[1], CHOICES[:1], "\nAnswer: ") == [
        "2 + 2 =\nAnswer: 4\n\nthe sky is\nAnswer: green",
        "2 + 2 =\nAnswer: 4\n\nthe sky is\nAnswer: greener",
        "2 + 2 =\nAnswer: 4\n\nthe sky is\nAnswer: blue",
    ]
    assert FORMS["schema"](SCHEMAS[0], SCHEMAS[1:], " ") == [
        "Fire is hot.\n\nA cat sleeps.",
        "Fire is hot.\n\nA stone sleeps.",
    ]
    assert FORMS["language_modeling"](WORDS[0], WORDS[1:], " ") == [
        "x y\n\none two",
        "x y\n\none two three",
    ]


def bytes_of(text: str) -> list[int]:
    return [END, *text.encode()]


def test_what_differs_between_the_answers_is_scored() -> None:
    found = list(pairs(bytes_of, task("multiple_choice", CHOICES), 2, 0))
    assert found == [(bytes_of("a "), [*b"b"]), (bytes_of("a "), [*b"c"])]
    # One answer begins with another one: the last token of the shorter one counts for both.
    same = [{"query": "q", "choices": ["green", "greener"], "gold": 0}]
    found = list(pairs(bytes_of, task("multiple_choice", same), 0, 0))
    assert found == [(bytes_of("q gree"), [*b"n"]), (bytes_of("q gree"), [*b"ner"])]
    # Contexts of different lengths, of which the same end is scored.
    found = list(pairs(bytes_of, task("schema", SCHEMAS), 0, 0))
    assert found == [
        (bytes_of("A cat"), [*b" sleeps."]), (bytes_of("A stone"), [*b" sleeps."])
    ]  # fmt: skip
    (one,) = pairs(bytes_of, task("language_modeling", WORDS), 1, 0)
    assert one == (bytes_of("x"), [*b" y"])


def test_no_question_precedes_itself() -> None:
    examples = [{"context": f"<{i}>", "continuation": "."} for i in range(12)]
    for at in range(12):
        ((before, _),) = pairs(bytes_of, task("language_modeling", examples, shots=10), at, 7)
        assert bytes(before[1:]).decode().count(f"<{at}>") == 1
        assert bytes(before[1:]).decode().count("<") == 11


def test_accuracies_are_those_of_the_public_code(model: HarnessLM) -> None:
    """Recorded from its `evaluate_task` with these examples, seeds and weights."""
    rng = random.Random(5)

    def word() -> str:
        return "".join(rng.choice("abcd ") for _ in range(rng.randint(2, 9))).strip() or "a"

    choices = [
        {"query": word(), "choices": [f"{word()}{k}" for k in range(3)], "gold": rng.randrange(3)}
        for _ in range(40)
    ]
    schemas = [
        {
            "context_options": [f"{word()}{k}" for k in range(2)],
            "continuation": f"{word()}.",
            "gold": rng.randrange(2),
        }
        for _ in range(40)
    ]
    found = [
        accuracy(model, task(form, examples, shots, "\nAnswer: "), 2345)
        for form, examples in (("multiple_choice", choices), ("schema", schemas))
        for shots in (0, 3)
    ]
    assert found == [0.275, 0.275, 0.55, 0.725]


def test_words_are_right_if_greedy_text_has_them(
    model: HarnessLM, pretrained: PretrainedLM
) -> None:
    ids = bytes_of("one two")
    written = ""
    for _ in range(2):
        with torch.no_grad():
            ids.append(int(pretrained(torch.tensor([ids])).logits[0, -1].argmax()))
        written += chr(ids[-1])
    examples = [
        {"context": "one two", "continuation": written},
        {"context": "one two", "continuation": written[0] + chr(ord(written[1]) ^ 1)},
    ]
    assert accuracy(model, task("language_modeling", examples, delimiter=""), 0) == 0.5


def test_the_mean_is_over_tasks_centred_at_guessing(model: HarnessLM, tmp_path: Path) -> None:
    found, table = run_core(model, write(tmp_path / "bundle"))
    assert list(found["tasks"]) == ["multiple_choice_task", "schema_task", "language_modeling_task"]
    for each, guessing in zip(found["tasks"].values(), (0.0, 0.2, 0.4), strict=True):
        assert each["centred"] == pytest.approx((each["accuracy"] - guessing) / (1 - guessing))
    mean = sum(each["centred"] for each in found["tasks"].values()) / 3
    assert found["core"] == pytest.approx(mean)
    assert table.splitlines()[-1] == f"| CORE | | | | {mean:.4f} |"


def test_a_line_of_json_may_hold_what_ends_lines_elsewhere(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "eval_data/schema.jsonl"
    item = {"context_options": ["a\u2028b", "c\x85d"], "continuation": "e", "gold": 0}
    path.write_text(json.dumps(item, ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = (task for task in read_bundle(tmp_path) if task.label == "schema_task")
    assert found.examples == [item]


def test_the_order_and_the_limit(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle")
    whole, part = read_bundle(folder), read_bundle(folder, limit=1)
    assert [len(each.examples) for each in part] == [1, 1, 1]
    assert all(a.examples[0] == b.examples[0] for a, b in zip(part, whole, strict=True))
    expected = list(CHOICES)
    random.Random(1337).shuffle(expected)
    assert whole[0].examples == expected
    assert [each.shots for each in whole] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("core.yaml", None, "No such file"),
        ("core.yaml", "icl_tasks: 3", "not iterable"),
        ("core.yaml", "a: [", "while parsing"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\n", "'multiple_choice_task'"),
        ("eval_data/schema.jsonl", "{", "Expecting"),
        ("eval_data/schema.jsonl", "", "schema_task has no examples"),
        ("eval_data/schema.jsonl", None, "No such file"),
    ],
)
def test_a_folder_of_something_else(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match="does not hold the tasks of CORE") as caught:
        read_bundle(folder)
    assert said in str(caught.value)
    assert "eval_bundle.zip" in str(caught.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = {f"module.{n}": value for n, value in CONFIG.build().state_dict().items()}
    meta = {"task": "lm", "config": CONFIG.to_json(), "tokenizer": ByteTokenizer().to_json()}
    path = tmp_path / "model.safetensors"
    Checkpoint({"average": weights}, {**meta, "step": 0}).save(path)
    folder = write(tmp_path / "bundle")
    arguments = ["harness", "--tasks", str(folder), "--checkpoint", str(path), "--limit", "2"]
    assert main([*arguments, "--device", "cpu", "--max-steps", "4"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["harness"]) == {"core", "spread", "seeds", "tasks"}
    assert main([*arguments[:2], str(tmp_path), *arguments[3:]]) == 2
    assert "does not hold the tasks of CORE" in capsys.readouterr().err

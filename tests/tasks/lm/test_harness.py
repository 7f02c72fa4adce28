"""Scores and text that the lm-evaluation-harness asks for, against direct computation."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counting import Counting

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.__main__ import main
from tasks.lm.config import LanguageConfig
from tasks.lm.generate import Sampling, generate
from tasks.lm.tokenizer import END

pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from tasks.lm.harness import HarnessLM, run_tasks
from tasks.lm.hub import PretrainedLM

PAIRS = [
    ("def f", "(x)"), ("", "import"), ("the end ", "of it"), ("a much longer context", ":"),
    ("x", ""), ("past the context " * 5, "end"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained() -> PretrainedLM:
    """A small model with random weights, on bytes."""
    torch.manual_seed(0)
    config = LanguageConfig.of(
        vocabulary=257, width=16, num_heads=2, context=24, backbone_blocks=1, rtol=1e-6
    )
    return PretrainedLM(config.to_json(), "").eval()


@pytest.fixture
def model(pretrained: PretrainedLM) -> HarnessLM:
    """As the harness sees it; batches of two, so that lengths are mixed and ordered."""
    return HarnessLM(pretrained, "cpu", batch_size=2)


def ask(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    """Requests."""
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def score(net: PretrainedLM, tokens: list[int], count: int) -> tuple[float, bool]:
    """Of the last tokens, alone, without padding."""
    with torch.no_grad():
        logits = net(torch.tensor([tokens[:-1]])).logits[0, len(tokens) - 1 - count :]
    target = torch.tensor(tokens[-count:])
    scores = logits.log_softmax(-1)
    return float(scores[range(count), target].sum()), torch.equal(scores.argmax(-1), target)


def test_scores_are_those_of_each_text_alone(model: HarnessLM, pretrained: PretrainedLM) -> None:
    model.progress = progress = Counting()
    found = model.loglikelihood(ask("loglikelihood", *PAIRS), disable_tqdm=True)
    progress.require_whole()
    assert progress.parts[0][:2] == ("5 continuations", 3)  # one is empty
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        tokens = [END, *context.encode(), *continuation.encode()][-25:]
        # Blanks at a context's end belong to what follows it: so the harness has it.
        count = len((context + continuation).encode()) - len(context.rstrip(" ").encode())
        if not count:
            assert (total, greedy) == (0.0, True)
            continue
        expected, is_greedy = score(pretrained, tokens, count)
        assert total == pytest.approx(expected, abs=1e-3)
        assert greedy == is_greedy


def test_what_the_model_would_write_is_greedy(model: HarnessLM, pretrained: PretrainedLM) -> None:
    prompt = [END, *b"def f"]
    greedy = Sampling(temperature=0)
    drawn = generate(pretrained.model, [prompt], tokens=6, context=24, sampling=greedy)
    tokens = [int(token) for token in drawn]
    other = [tokens[0], (tokens[1] + 1) % 256, *tokens[2:]]
    found = model._loglikelihood_tokens(
        [(("", ""), prompt, tokens), (("", ""), prompt, other), (("", ""), prompt, other[:1])]
    )
    assert [is_greedy for _, is_greedy in found] == [True, False, True]


def test_a_whole_text_is_scored_once_in_windows(model: HarnessLM, pretrained: PretrainedLM) -> None:
    texts = ["short", "x = 1\n" * 11, ""]
    found = model.loglikelihood_rolling(ask("loglikelihood_rolling", *[(t,) for t in texts]))
    assert found[2] == 0.0
    assert found[0] == pytest.approx(score(pretrained, [END, *b"short"], 5)[0], abs=1e-3)
    # 66 bytes in windows of 24: the last one sees as much before its 18 bytes as there is room for.
    row = [END, *texts[1].encode()]
    parts = [(row[0:25], 24), (row[24:49], 24), (row[42:67], 18)]
    expected = sum(score(pretrained, tokens, count)[0] for tokens, count in parts)
    assert found[1] == pytest.approx(expected, abs=1e-3)


def test_text_stops_where_the_task_says(model: HarnessLM, pretrained: PretrainedLM) -> None:
    prompts = ["def f", "a", "class Longer:"]
    greedy = Sampling(temperature=0)
    for_each = {}
    for prompt in prompts:
        tokens = generate(
            pretrained.model, [[END, *prompt.encode()]], tokens=8, context=24, sampling=greedy
        )
        row = [int(token) for token in tokens]
        for_each[prompt] = pretrained.tokenizer.decode(row[: [*row, END].index(END)])
    options = {"until": [], "max_gen_toks": 8}
    model.progress = progress = Counting()
    found = model.generate_until(ask("generate_until", *[(p, options) for p in prompts]))
    progress.require_whole()
    assert found == list(for_each.values())
    assert any(found)
    text = max(found, key=len)
    stop, prompt = text[2:4], prompts[found.index(text)]
    cut = model.generate_until(ask("generate_until", (prompt, {**options, "until": [stop]})))
    assert cut == [text[: text.index(stop)]]


def test_options_without_effect_are_named(model: HarnessLM) -> None:
    options = {"until": ["\n"], "max_gen_toks": 2, "num_beams": 4}
    with pytest.warns(UserWarning, match="no options num_beams"):
        model.generate_until(ask("generate_until", ("a", options)))


def test_a_continuation_longer_than_the_context(model: HarnessLM) -> None:
    with pytest.raises(ValueError, match="has 30 tokens, more than the model's context of 24"):
        model.loglikelihood(ask("loglikelihood", ("a", "b" * 30)), disable_tqdm=True)


def test_no_continuation_is_lost_in_a_merged_token(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tasks.lm.tokenizer import train_tokenizer

    config = LanguageConfig.of(vocabulary=300, width=16, num_heads=2)
    state = train_tokenizer(["abab abab " * 50], 300).to_json()
    model = HarnessLM(PretrainedLM(config.to_json(), state), "cpu")
    before, after = model._encode_pair("aba", "b")
    assert model.words.decode([*before, *after]) == "abab"


@pytest.mark.parametrize(
    ("context", "continuation", "kept"),
    [
        ("hello wor", "ld", "hello wor"),
        ("hello wor", "ld!", "hello wor"),
        ("hello w", "orld! hello", "hello w"),
        ("hello", " world!", "hello"),
        ("hello ", "world!", "hello"),
        ("hello \n ", "world", "hello"),
        ("the answ", "er is wonderful", "the answ"),
        ("wörd", "less w\u2028orlds", "wörd"),
        ("hello world", "", "hello world"),
        (" ", "hello", ""),
    ],
)
def test_all_of_a_continuation_is_scored_and_nothing_else(
    context: str, continuation: str, kept: str
) -> None:
    """Although byte pairs may merge across the join; blanks before it go with the continuation."""
    pytest.importorskip("tokenizers")
    from tasks.lm.tokenizer import train_tokenizer

    text = "hello world! hello world!! the answer is wonderful wordless worlds "
    words = train_tokenizer([text * 50], 300)
    config = LanguageConfig.of(vocabulary=300, width=16, num_heads=2)
    settings = {**config.to_json(), "vocabulary": words.size}
    model = HarnessLM(PretrainedLM(settings, words.to_json()), "cpu")
    before, after = model._encode_pair(context, continuation)
    assert before == [END, *words.encode(kept)]
    assert words.decode(after) == (context + continuation)[len(kept) :]
    # Where no token lies across the join, tokens are those of the whole text.
    whole = words.encode(context + continuation)
    if whole[: len(before) - 1] == before[1:]:
        assert [*before[1:], *after] == whole


def test_the_harness_knows_the_model_by_name() -> None:
    assert get_model("attractor") is HarnessLM


@pytest.mark.parametrize("size", [0, "auto"])
def test_batch_sizes(pretrained: PretrainedLM, size: Any) -> None:
    with pytest.raises(ValueError, match="whole number above 0"):
        HarnessLM(pretrained, "cpu", batch_size=size)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of the harness on a local file."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"{i} and {i}"}) + "\n" for i in range(5)))
    path = tmp_path / "repeat.yaml"
    path.write_text(
        f"task: repeat\ndataset_path: json\ndataset_kwargs:\n  data_files: {data}\n"
        "output_type: loglikelihood\ntest_split: train\n"
        "doc_to_text: \"{{text.split(' ')[0]}} and\"\n"
        "doc_to_target: \" {{text.split(' ')[2]}}\"\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return path


@pytest.mark.filterwarnings("default")  # the harness and its packages have some of their own
def test_the_command(
    task: Path, pretrained: PretrainedLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "model.safetensors"
    average = {f"module.{name}": value for name, value in pretrained.model.state_dict().items()}
    meta = {"task": "lm", "config": pretrained.settings.to_json(), "tokenizer": ""}
    Checkpoint({"average": average}, meta).save(checkpoint)
    arguments = ["--tasks", str(task), "--checkpoint", str(checkpoint), "--limit", "3"]
    assert main(["harness", *arguments, "--json", str(tmp_path / "out.json")]) == 0
    assert "|repeat|" in capsys.readouterr().err
    found = json.loads((tmp_path / "out.json").read_text())["harness"]["repeat"]
    assert found["sample_len"] == 3
    assert 0 <= found["acc,none"] <= 1


def test_an_unknown_task(model: HarnessLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known:
        all_tasks = ("lambada_openai", "piqa")

        def __init__(self, **_: object) -> None: ...

    monkeypatch.setattr("tasks.lm.harness.TaskManager", Known)
    with pytest.raises(
        ValueError, match=r"no task 'lambada_opena'\. Did you mean 'lambada_openai'"
    ):
        run_tasks(model, ["lambada_opena"])


def test_files_that_are_not_there(model: HarnessLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.lm.harness.TaskManager", lambda **_: SimpleNamespace(all_tasks=()))
    with pytest.raises(ValueError, match=r"no folder eval_bundle with the tasks of CORE.* Unpack "):
        run_tasks(model, ["eval_bundle"])
    with pytest.raises(ValueError, match=r"There is no file mine\.yaml, which `--tasks` names"):
        run_tasks(model, ["mine.yaml"])

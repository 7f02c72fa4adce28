"""Data sets that are read as they are needed: order, packing, and going on exactly."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.experiments.run import train
from tasks.lm import stream
from tasks.lm.__main__ import main
from tasks.lm.config import LanguageConfig
from tasks.lm.data import is_held_out
from tasks.lm.experiment import TextExperiment
from tasks.lm.stream import Documents, StreamedBatches, load_batches
from tasks.lm.tokenizer import END, train_tokenizer
from tasks.training import history as log
from tasks.training.task import SourceLost

pytest.importorskip("datasets", reason="the extra `lm-data` is not installed")

TEXTS = [f"document {i}: " + " ".join(str(i * j) for j in range(i % 9)) for i in range(120)]
GENERATOR = torch.Generator()


def write_json(folder: Path, texts: list[str | None] = TEXTS) -> Path:
    """Two files of JSON lines in a folder."""
    folder = folder / "data"
    folder.mkdir()
    for number, part in enumerate((texts[:50], texts[50:])):
        lines = [json.dumps({"number": i, "text": text}) + "\n" for i, text in enumerate(part)]
        (folder / f"part-{number}.jsonl").write_text("".join(lines))
    return folder


def write_parquet(folder: Path) -> Path:
    """A file of several row groups."""
    from pyarrow import parquet, table

    path = folder / "texts.parquet"
    parquet.write_table(table({"text": TEXTS}), path, row_group_size=30)
    return path


def write_text(folder: Path) -> Path:
    """Paragraphs, with blank lines between them."""
    path = folder / "texts.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


@pytest.fixture
def config(tmp_path: Path) -> LanguageConfig:
    """A small run on two files of JSON lines."""
    return LanguageConfig.of(
        dataset=str(write_json(tmp_path)), vocabulary=257, context=16, eval_tokens=40,
        batch_size=2, width=16, num_heads=2, steps=20, threads=1, warmup=2,
    )  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more tries, without pauses."""
    monkeypatch.setattr(stream, "PAUSES", (0.0, 0.0))


def rest(documents: Documents) -> list[str]:
    """All texts to the end."""
    return list(iter(documents.read, None))


def break_at(documents: Documents, number: int, times: int) -> None:
    """Let reading fail so many times before a document."""
    left, inner = [times], documents.reader

    class Breaking:
        state_dict, load_state_dict = inner.state_dict, inner.load_state_dict

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for row in inner:
                if documents.position["documents"] == number and left[0]:
                    left[0] -= 1
                    raise ConnectionError("Server Disconnected")
                yield row

    documents.reader = Breaking()
    documents.seek(documents.position)


def trained_on() -> list[int]:
    """The row of training tokens."""
    return [t for text in TEXTS if not is_held_out(text, 0.05) for t in [*text.encode(), END]]


@pytest.mark.parametrize("write", [write_json, write_parquet, write_text])
def test_reading_goes_on_exactly_from_any_document(tmp_path: Path, write: Any) -> None:
    config = LanguageConfig.of(dataset=str(write(tmp_path)))
    documents, positions = Documents(config), []
    texts: list[str] = []
    while (text := documents.read()) is not None:
        texts.append(text)
        positions.append(json.dumps(documents.position))
    assert texts == TEXTS
    other = Documents(config)
    for number, position in enumerate(positions, 1):
        other.seek(json.loads(position))
        assert rest(other) == TEXTS[number:]
    other.rewind()
    assert other.read() == TEXTS[0]


def test_every_training_token_is_predicted_once_in_order(config: LanguageConfig) -> None:
    batches, row = load_batches(config), trained_on()
    found = []
    for size in (1, 3, 2, 5):
        x, target = batches.batch(size, GENERATOR, 0.0)
        assert x.shape == target.shape == (size, config.data.context)
        at = len(found)
        assert x.flatten().tolist() == row[at : at + size * config.data.context]
        found += target.flatten().tolist()
    assert found == row[1 : 1 + len(found)]


def test_the_position_does_not_depend_on_the_size_of_a_batch(config: LanguageConfig) -> None:
    one, other = load_batches(config), load_batches(config)
    one.batch(6, GENERATOR, 0.0)
    for _ in range(3):
        other.batch(2, GENERATOR, 0.0)
    assert one.state_dict() == other.state_dict()


def test_batches_go_on_exactly_also_in_another_pass(
    config: LanguageConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = load_batches(config)
    passes = 2 * len(trained_on()) // (3 * config.data.context)
    given, positions = [], []
    for _ in range(passes):
        positions.append(json.dumps(batches.state_dict()))
        given.append(batches.batch(3, GENERATOR, 0.0)[1])
    assert "All 120 documents are read: starting again." in capsys.readouterr().out
    row = torch.cat([target.flatten() for target in given]).tolist()
    assert row == (trained_on() * 2)[1 : 1 + len(row)]
    other = load_batches(config)
    for at in range(0, passes, 5):
        other.load_state_dict(json.loads(positions[at]))
        for expected in given[at : at + 2]:
            assert torch.equal(other.batch(3, GENERATOR, 0.0)[1], expected)


def test_what_is_held_out_is_the_beginning_of_documents_never_trained_on(
    config: LanguageConfig,
) -> None:
    held_out = [t for text in TEXTS if is_held_out(text, 0.05) for t in [*text.encode(), END]]
    assert len(held_out) > 41
    corpus = load_batches(config).corpus
    assert corpus.held_out.tolist() == held_out[:41]
    assert (
        load_batches(config, corpus.tokenizer.to_json()).corpus.held_out.tolist() == held_out[:41]
    )


def test_tokens_are_learned_from_the_beginning(config: LanguageConfig) -> None:
    pytest.importorskip("tokenizers")
    config = config.changed(vocabulary=300, max_bytes=500, context=8)
    batches = load_batches(config)
    beginning = [text for text in TEXTS if not is_held_out(text, 0.05)]
    while sum(map(len, beginning)) > 500:
        *beginning, last = beginning
    beginning.append(last[: 500 - sum(map(len, beginning))])
    learned = batches.corpus.tokenizer
    assert learned.to_json() == train_tokenizer(beginning, 300).to_json()
    again = load_batches(config, learned.to_json())
    assert torch.equal(again.corpus.held_out, batches.corpus.held_out)
    assert torch.equal(again.batch(4, GENERATOR, 0.0)[0], batches.batch(4, GENERATOR, 0.0)[0])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "change",
    [
        {"offset": 10**12}, {"offset": -1}, {"passes": "evil"}, {"documents": None}, {"evil": 1},
        {"reader": "evil"}, {"reader": {}}, {"reader": {"examples_iterable": [[]]}},
    ],
)  # fmt: skip
def test_a_position_of_other_data_is_refused(
    config: LanguageConfig, change: dict[str, Any]
) -> None:
    batches = load_batches(config)
    batches.batch(2, GENERATOR, 0.0)
    position = {**batches.state_dict(), **change}

    def go_on() -> None:
        batches.load_state_dict(position)
        batches.batch(2, GENERATOR, 0.0)

    with pytest.raises(ValueError, match=r"position|stopped at token|cannot be read on"):
        go_on()


@pytest.mark.usefixtures("impatient")
def test_an_interruption_that_passes_changes_nothing(
    config: LanguageConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = Documents(config)
    break_at(documents, 61, times=2)
    assert rest(documents) == TEXTS
    out = capsys.readouterr().out
    assert out.count("cannot be read on after 61 documents (Server Disconnected)") == 2


@pytest.mark.usefixtures("impatient")
def test_an_interruption_that_lasts_leaves_the_position(config: LanguageConfig) -> None:
    batches = load_batches(config)
    assert isinstance(batches, StreamedBatches)
    batches.batch(1, GENERATOR, 0.0)
    before = batches.state_dict()
    break_at(batches.documents, 20, times=3)
    with pytest.raises(SourceLost, match="after 20 documents"):
        batches.batch(40, GENERATOR, 0.0)
    assert batches.state_dict() == before
    x, _ = batches.batch(40, GENERATOR, 0.0)
    at = config.data.context
    assert x.flatten().tolist() == trained_on()[at : at + 40 * config.data.context]


@pytest.mark.usefixtures("impatient")
def test_damaged_data_is_not_tried_again(
    config: LanguageConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    part = Path(str(config.data.dataset)) / "part-1.jsonl"
    part.write_text(part.read_text()[:-20])
    with pytest.raises(SourceLost, match="after 50 documents"):
        rest(Documents(config))
    assert "Trying again" not in capsys.readouterr().out


@pytest.mark.usefixtures("impatient")
def test_a_run_whose_data_were_lost_resumes_to_the_same_losses(
    config: LanguageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _, _ = train(TextExperiment(), "tiny", config, tmp_path / "whole")

    load = load_batches

    def breaking(*arguments: Any) -> Any:
        batches = load(*arguments)
        assert isinstance(batches, StreamedBatches)
        break_at(batches.documents, 30, times=99)
        return batches

    monkeypatch.setattr("tasks.lm.experiment.load_batches", breaking)
    path = tmp_path / "parts" / "checkpoint.safetensors"
    with pytest.raises(SourceLost, match=f"go on with `train --resume {path}`"):
        train(TextExperiment(), "tiny", config, tmp_path / "parts")
    monkeypatch.undo()
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    kept = Checkpoint.load(path)
    assert 0 < kept.meta["step"] < 20
    parts, _, _ = train(TextExperiment(), "tiny", config, tmp_path / "parts", kept)
    losses = [row["loss"] for row in whole.history.rows]
    assert len(losses) == 20
    assert [row["loss"] for row in parts.history.rows] == losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    assert parts.task.state_dict() == whole.task.state_dict()


def test_training_and_evaluation_from_the_command_line(
    config: LanguageConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--preset", "tiny", "--width", "16", "--num-heads", "2", "--context", "16"]
    arguments += ["--eval-tokens", "40", "--steps", "2", "--dataset", str(config.data.dataset)]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    assert "on the documents of" in capsys.readouterr().err
    checkpoint = str(tmp_path / "run" / "checkpoint.safetensors")
    assert main(["eval", "--checkpoint", checkpoint]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["eval"]
    assert found == {
        name: value
        for name, value in json.loads((tmp_path / "run/result.json").read_text())["eval"].items()
        if name in found
    }


def test_documents_without_text_are_passed_over(tmp_path: Path) -> None:
    texts = ["", None, *TEXTS, None]
    config = LanguageConfig.of(
        dataset=str(write_json(tmp_path, texts)),
        vocabulary=257,
        context=16,
        eval_tokens=40,
    )
    x, _ = load_batches(config).batch(4, GENERATOR, 0.0)
    assert x.flatten().tolist() == trained_on()[: 4 * 16]


@pytest.mark.parametrize(("options", "message"), [
    (["--dataset", "{}/nowhere"], "cannot be opened"),
    (["--dataset", "{}/data", "--dataset-name", "sample-10BT"], "(sample-10BT) cannot be opened"),
    (["--dataset", "{}/data", "--column", "words"], "no column 'words', only 'number', 'text'"),
    (["--dataset", "{}/data", "--column", "number"], "is of type int"),
    (["--dataset", "{}/data", "--text", "{}"], "drop one"),
    (["--dataset-name", "sample-10BT"], "no `dataset` is named"),
    (["--dataset", "{}/empty.jsonl"], "is empty"),
    (["--dataset", "{}/blank.jsonl"], "has no text to train on in its column 'text', in 1"),
    (["--dataset", "{}/data/part-0.jsonl", "--context", "9999"], "5% of the documents are held"),
])  # fmt: skip
def test_bad_input_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    arguments = [option.format(tmp_path) for option in options]
    try:
        code = main(["train", "--preset", "tiny", "--out", str(tmp_path / "run"), *arguments])
    except SystemExit as stop:  # how the flag parser refuses a value
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())


def test_without_the_package_the_extra_is_named(
    config: LanguageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"attractor-models\[lm-data\].*--text"):
        load_batches(config)


def test_what_cannot_be_reached_is_named_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr("datasets.load_dataset_builder", unreachable)
    config = LanguageConfig.of(dataset="someone/texts", vocabulary=257)
    with pytest.raises(ValueError, match=r"reach it\. It is published at \S+/someone/texts\. Name"):
        load_batches(config)

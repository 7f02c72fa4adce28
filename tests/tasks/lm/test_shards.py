"""Folders of prepared tokens: what they hold, what is refused, and how they are written."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_folders import GENERATOR, TEXTS, load, run_on_text

from tasks.lm import prepare as preparing
from tasks.lm.__main__ import main
from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.data import encode, load_corpus
from tasks.lm.prepare import prepare
from tasks.lm.shard_batches import ShardedBatches
from tasks.lm.shards import INDEX, MANIFEST, Manifest, ShardError, check_of
from tasks.lm.stream import load_batches
from tasks.lm.tokenizer import END
from tasks.training.task import SourceLost


@pytest.fixture
def source(tmp_path: Path) -> LanguageConfig:
    """A small run on the text itself."""
    return run_on_text(tmp_path / "text")


@pytest.fixture
def text(source: LanguageConfig) -> Path:
    """The folder of that text."""
    assert source.data.text is not None
    return source.data.text


@pytest.fixture
def folder(tmp_path: Path, source: LanguageConfig) -> Path:
    """The tokens in several files."""
    prepare(tmp_path / "tokens", source, shard_tokens=5000)
    return tmp_path / "tokens"


@pytest.fixture
def config(folder: Path, source: LanguageConfig) -> LanguageConfig:
    """The same run on the prepared tokens."""
    return source.changed(shards=folder)


def test_a_folder_holds_the_tokens_that_training_on_the_text_would_see(
    config: LanguageConfig, source: LanguageConfig, folder: Path
) -> None:
    corpus, batches = load_corpus(source), load(config)
    assert len(Manifest.read(folder).training) > 3
    count = batches.store.num_documents
    row = batches.store.read(np.arange(count), 0, batches.store.num_tokens)
    assert row.tolist() == corpus.train.tolist()
    assert torch.equal(batches.corpus.held_out, corpus.held_out[:41])
    assert batches.source == f"{len(corpus.train):,} tokens in {folder}"


def test_long_documents_are_stored_in_pieces(
    tmp_path: Path, source: LanguageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "LONGEST", 100)
    prepare(tmp_path / "tokens", source)
    batches = load(source.changed(shards=tmp_path / "tokens"))
    lengths = batches.store.lengths(np.arange(batches.store.num_documents))
    assert lengths.max() == 100
    row = batches.store.read(np.arange(len(lengths)), 0, batches.store.num_tokens)
    assert row.tolist() == load_corpus(source).train.tolist()


def test_so_many_tokens_and_no_more(tmp_path: Path, source: LanguageConfig) -> None:
    made = prepare(tmp_path / "tokens", source, tokens=1000)
    assert 1000 <= sum(shard.tokens for shard in made.training) < 1400
    assert sum(shard.tokens for shard in made.held_out) == len(load_corpus(source).held_out)


def test_a_data_set_is_prepared(tmp_path: Path, source: LanguageConfig) -> None:
    pytest.importorskip("datasets", reason="the extra `lm-data` is not installed")
    pytest.importorskip("tokenizers")
    lines = [json.dumps({"text": text}) + "\n" for text in [*TEXTS, ""]]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    streamed = source.changed(dataset=str(tmp_path / "data.jsonl"), vocabulary=300, max_bytes=9000)
    prepare(tmp_path / "tokens", streamed)
    stream, batches = load_batches(streamed), load(streamed.changed(shards=tmp_path / "tokens"))
    assert stream.corpus.tokenizer.to_json() == batches.corpus.tokenizer.to_json()
    assert torch.equal(stream.corpus.held_out, batches.corpus.held_out)
    count = batches.store.num_tokens // 16 - 1
    row = batches.store.read(np.arange(batches.order.count), 0, 16 * count)
    assert stream.batch(count, GENERATOR, 0.0)[0].flatten().tolist() == row.tolist()


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"xx")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Any, str]] = {
    "missing": (lambda f: (f / "training-00001.tokens").unlink(), r"training-00001.tokens is miss"),
    "cut": (lambda f: cut(f / "training-00001.tokens"), r"training-00001.tokens was cut short: it"),
    "longer": (lambda f: lengthen(f / "held_out-00000.tokens"), "was changed: it has"),
    "index missing": (lambda f: (f / "training-00000.index").unlink(), "index is missing"),
    "index cut": (lambda f: cut(f / "training-00000.index"), "index was cut short"),
    "index changed": (lambda f: flip(f / "training-00000.index"), "is not the index that the"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "another tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"), "not the tokenizer of the tokens beside",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "has no manifest.json, .* `python -m tasks"),
    "newer": (lambda f: edit(f / MANIFEST, version=2), "is of version 2, .* Update"),
    "another kind": (lambda f: edit(f / MANIFEST, kind="cake"), "is not the manifest of a folder"),
    "no json": (lambda f: (f / MANIFEST).write_text("{" * 9), "is not the manifest of a folder"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), "is not the manifest of a folder"),
    "more": (lambda f: edit(f / MANIFEST, evil=1), "is not the manifest of a folder"),
    "elsewhere": (
        lambda f: edit(
            f / MANIFEST, training=[{"name": "../x", "tokens": 1, "documents": 1, "index": ""}]
        ),
        "a file of another name",
    ),
    "no documents": (lambda f: edit(f / MANIFEST, held_out=[]), "lists no documents"),
    "vocabulary": (lambda f: edit(f / MANIFEST, vocabulary=300), "Train with `--vocabulary 300`"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_before_training(name: str, config: LanguageConfig, folder: Path) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(ShardError, match=message) as caught:
        load(config)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def read_all(batches: ShardedBatches) -> None:
    for _ in range(batches.store.num_tokens // (16 * 50) + 1):
        batches.batch(50, GENERATOR, 0.0)


def test_changed_tokens_are_found_when_they_are_read(config: LanguageConfig, folder: Path) -> None:
    flip(folder / "training-00002.tokens")
    batches = load(config)
    with pytest.raises(SourceLost, match=r"training-00002.tokens is not as .*: document \d+ of it"):
        read_all(batches)
    before = batches.state_dict()
    flip(folder / "training-00002.tokens")  # the file is put back
    read_all(batches)
    assert before != batches.state_dict()


def test_a_file_that_is_cut_while_it_is_read(config: LanguageConfig, folder: Path) -> None:
    batches = load(config)
    os.truncate(folder / "training-00001.tokens", 100)
    with pytest.raises(SourceLost, match=r"training-00001.tokens is not as .*: it was cut short\."):
        read_all(batches)


def test_tokens_beyond_the_vocabulary(config: LanguageConfig, folder: Path) -> None:
    """With checksums that fit, as a program of somebody else may have written them."""
    path = folder / "training-00000.tokens"
    index = np.frombuffer((folder / "training-00000.index").read_bytes(), INDEX).copy()
    tokens = np.fromfile(path, "<u2")
    tokens[index["end"][3] - 1] = 257
    path.write_bytes(tokens.tobytes())
    index["check"][3] = check_of(tokens[index["end"][2] : index["end"][3]])
    (folder / "training-00000.index").write_bytes(index.tobytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["training"][0]["index"] = preparing.digest_of(index.tobytes())
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SourceLost, match="has the token 257, and a vocabulary of only 257"):
        read_all(load(config))


def test_another_tokenizer_than_the_models(tmp_path: Path, source: LanguageConfig) -> None:
    pytest.importorskip("tokenizers")
    source = source.changed(vocabulary=300)
    prepare(tmp_path / "tokens", source)
    other = load_corpus(source.changed(max_bytes=20_000)).tokenizer.to_json()
    with pytest.raises(ShardError, match=r"made by another tokenizer .* `prepare --tokenizer`"):
        load_batches(source.changed(shards=tmp_path / "tokens"), other)
    prepare(tmp_path / "others", source, other)
    load_batches(source.changed(shards=tmp_path / "others"), other)


def test_too_short_for_the_context(config: LanguageConfig) -> None:
    with pytest.raises(ShardError, match=r"[\d,]+ held-out tokens, no more than one sequence"):
        load(config.changed(context=10_000))


# Preparing


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, source: LanguageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(preparing.PartWriter):
        def finish(self) -> None:
            if len(self.shards) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().finish()

    folder = tmp_path / "tokens"
    monkeypatch.setattr(preparing, "PartWriter", Full)
    with pytest.raises(ValueError, match=r"after [\d,]+ tokens \(No space left .*\); .* Make room"):
        prepare(folder, source, shard_tokens=1000)
    assert not folder.exists()
    monkeypatch.undo()
    prepare(folder, source)
    load(source.changed(shards=folder))


def test_what_a_killed_process_left_is_not_taken_and_is_replaced(
    config: LanguageConfig, source: LanguageConfig, folder: Path
) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(ShardError, match=r"as a folder of tokens has once `prepare` is done"):
        load(config)
    made = prepare(folder, source)
    assert len(made.training) == 1
    assert not (folder / "training-00001.tokens").exists()
    read_all(load(config))


def test_folders_that_hold_something_are_left_alone(
    source: LanguageConfig, folder: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds tokens already\. Name a new or empty folder"):
        prepare(folder, source)
    with pytest.raises(ValueError, match=r"holds 0\.txt\. Name a new or empty folder"):
        prepare(text, source)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("")
    with pytest.raises(ValueError, match=r"holds tokenizer\.json"):
        prepare(tmp_path / "model", source)
    with pytest.raises(ValueError, match=r"cannot be written"):
        prepare(text / "0.txt" / "tokens", source)


def test_from_the_command_line(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, run = str(tmp_path / "tokens"), str(tmp_path / "run")
    assert main(["prepare", tokens, "--preset", "tiny", "--text", str(text)]) == 0
    out = capsys.readouterr().out
    assert f"python -m tasks.lm train --preset tiny --shards {tokens} --vocabulary 257\n" in out
    assert "never occur" not in out
    small = ["--preset", "tiny", "--width", "16", "--num-heads", "2", "--context", "16"]
    small += ["--eval-tokens", "40", "--steps", "2", "--shards", tokens, "--out", run]
    assert main(["train", *small]) == 0
    assert main(["eval", "--checkpoint", run]) == 0
    assert main(["eval", "--checkpoint", run, "--text", str(text)]) == 0
    again = str(tmp_path / "again")
    arguments = ["prepare", again, "--preset", "tiny", "--text", str(text), "--tokenizer"]
    assert main([*arguments, run]) == 0
    assert main(["prepare", again + "2", "--preset", "tiny", "--tokenizer", tokens]) == 0
    assert Manifest.read(Path(again)).tokenizer == Manifest.read(Path(tokens)).tokenizer


@pytest.mark.parametrize(("options", "message"), [
    (["train", "--shards", "{}", "--text", "{}"], "Both `text`"),
    (["train", "--shards", "{}", "--dataset", "x"], "Both `dataset`"),
    (["train", "--shards", "{}", "--held-out", "0.1"], "only without `--shards`; `prepare` has it"),
    (["train", "--shards", "{}"], "has no manifest.json"),
    (["plan", "--shards", "{}"], "has no manifest.json"),
    (["train", "--shards", "{}/0.txt"], "is a file, and `--shards` names the folder that `prepare"),
    (["prepare", "{}/x", "--tokens", "0"], "`--tokens` must be at least 1, got 0"),
    (["prepare", "{}/x", "--text", "{}", "--dataset", "x"], "drop one"),
    (["prepare", "{}/x", "--text", "{}", "--column", "x"], "`--column` has an effect only with"),
    (["prepare", "{}/x", "--tokenizer", "nothing"], "No checkpoint at nothing"),
    (["prepare", "{}/x", "--text", "{}/0.txt"], "too few to train on"),
    (["prepare", "{}/x", "--width", "3"], "Unknown option `--width`"),
])  # fmt: skip
def test_bad_input_is_one_line(
    options: list[str], message: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = [option.format(text) for option in options]
    try:
        code = main([command, "--preset", "tiny", *rest])
    except SystemExit as stop:  # how the flag parser refuses a value
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_damaged_folder_is_neither_trained_on_nor_planned(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(folder / "training-00001.tokens")
    assert main([command, "--preset", "tiny", "--shards", str(folder)]) == 2
    assert f"{folder}/training-00001.tokens was cut short" in capsys.readouterr().err


def test_no_file_has_more_tokens_than_are_named(tmp_path: Path, source: LanguageConfig) -> None:
    """Longer documents are cut, and a file ends before the document that would be too much."""
    made = prepare(tmp_path / "tokens", source, shard_tokens=150)
    sizes = [shard.tokens for shard in made.training]
    assert max(sizes) == 150
    assert sum(sizes) == len(load_corpus(source).train)


def test_a_run_whose_tokens_were_moved(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command that reads a checkpoint takes `--shards`, and none is told to give it."""
    run = tmp_path / "run"
    small = ["--preset", "tiny", "--width", "16", "--num-heads", "2", "--context", "16"]
    small += ["--eval-tokens", "40", "--steps", "2", "--shards", str(folder), "--out", str(run)]
    assert main(["train", *small]) == 0
    folder.rename(tmp_path / "moved")
    capsys.readouterr()
    expected = f"There is nothing at {folder}/manifest.json, which the run in this checkpoint reads"
    expected += " as its `--shards`. Move it back to there, or make a link to it there"
    assert main(["train", "--resume", str(run / "checkpoint.safetensors")]) == 2
    assert capsys.readouterr().err == f"error: {expected}.\n"
    for command in ("eval", "internalise"):
        assert main([command, "--checkpoint", str(run)]) == 2
        assert f"{expected}, or name other text with `--text`.\n" in capsys.readouterr().err
    folder.symlink_to(tmp_path / "moved")
    assert main(["eval", "--checkpoint", str(run)]) == 0


def test_a_tokenizer_and_the_vocabulary_of_a_preset(
    tmp_path: Path, text: Path, source: LanguageConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """A larger vocabulary than the tokenizer's is padded, and that is said; a smaller is not."""
    pytest.importorskip("tokenizers")
    known = str(tmp_path / "known")
    prepare(Path(known), source.changed(vocabulary=300))
    arguments = ["prepare", str(tmp_path / "tokens"), "--preset", "tiny", "--text", str(text)]
    arguments += ["--tokenizer", known]
    assert main(arguments) == 2
    assert "`--tokenizer` names has 300 tokens, and the vocabulary is 257. Prepare with " in (
        error := capsys.readouterr().err
    )
    assert "`--vocabulary 300`, or name another tokenizer." in error
    assert main([*arguments[:-1], f"{known}/tokenizer.json", "--vocabulary", "300"]) == 2
    assert f"is a file of a folder of tokens. Name the folder: {known}." in capsys.readouterr().err
    assert main([*arguments, "--vocabulary", "400"]) == 0
    out = capsys.readouterr().out
    assert "The tokenizer has 300 tokens: the other 100 of the vocabulary of 400 never occur" in out
    assert "--vocabulary 400" in out
    assert Manifest.read(tmp_path / "tokens").vocabulary == 400
    store = load(source.changed(shards=tmp_path / "tokens", vocabulary=400)).store
    row = store.read(np.arange(store.num_documents), 0, store.num_tokens)
    assert 256 < row.max() < 300


def test_a_preset_takes_prepared_tokens_in_place_of_its_data_set(folder: Path) -> None:
    config = PRESETS["140m"].changed(shards=folder)
    assert config.data.dataset is None
    assert config.changed(dataset="x", dataset_name="y").data.shards is None
    with pytest.raises(ValueError, match="drop one"):
        LanguageConfig.of(dataset="x", shards=folder)


def test_every_document_ends_with_an_end_of_text(config: LanguageConfig) -> None:
    store = load(config).store
    for document in range(0, store.num_documents, 7):
        tokens = store.read(np.array([document]), 0, 10**6)
        assert tokens[-1] == END
        assert END not in tokens[:-1]


def test_texts_are_encoded_together_as_one_by_one(source: LanguageConfig) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = load_corpus(source.changed(vocabulary=300)).tokenizer
    together = [token for tokens in tokenizer.encode_batch(TEXTS) for token in tokens]
    assert together == encode(tokenizer, TEXTS).tolist()

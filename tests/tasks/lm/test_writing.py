"""The language model that comes with the package, from Python and from the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks.lm
from tasks.lm import writing
from tasks.lm.__main__ import main

pytest.importorskip("tokenizers", reason="needs the extra `lm`")


@pytest.fixture(scope="module")
def writer() -> writing.Writer:
    return tasks.lm.load(device="cpu")


def test_a_text_is_gone_on_with(writer: writing.Writer) -> None:
    text = writer.generate("def read(", tokens=20, temperature=0.0)
    assert text.startswith("def read(")
    assert len(text) > len("def read(") + 10
    # What it was trained on has nothing else after this.
    assert "self" in text
    assert "small" in repr(writer)
    assert writer.generate("import ", tokens=5, seed=1) == writer.generate(
        "import ", tokens=5, seed=1
    )


def test_prompts_are_read_a_batch_at_a_time(
    writer: writing.Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BATCH", 2)
    read = 0

    def prompts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"x{read} = "

    texts = writer.generate(prompts(), tokens=2)
    assert next(texts).startswith("x1 = ")
    assert read == 2
    assert next(texts).startswith("x2 = ")
    assert next(texts).startswith("x3 = ")


def test_options_are_checked(writer: writing.Writer) -> None:
    with pytest.raises(ValueError, match="`tokens` must be at least 1, got 0"):
        writer.generate("a", tokens=0)
    with pytest.raises(ValueError, match="`temperature` must be at least 0"):
        writer.generate("a", temperature=-1)
    with pytest.raises(TypeError, match="heat"):
        writer.generate("a", heat=1)
    with pytest.raises(ValueError, match=r"Did you mean 'small'\?"):
        tasks.lm.load("smal")


def test_the_command_says_what_it_writes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "def ", "--tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("def ")
    assert "Writing with the model 'small' that comes with the package" in err

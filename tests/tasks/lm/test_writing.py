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
    for name, value, message in (
        ("tokens", 0, "an integer of at least 1, got 0"),
        ("tokens", "3", "an integer of at least 1, got '3'"),
        ("tokens", None, "an integer of at least 1, got None"),
        ("max_steps", 1.5, "an integer of at least 0, got 1.5"),
        ("temperature", -1, "at least 0, got -1"),
        ("temperature", "1", "a number, got '1'"),
        ("top_k", 1.5, "a whole number or none, got 1.5"),
        ("top_p", [1], r"a number or none, got \[1\]"),
        ("seed", None, "a whole number, got None"),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` must be {message}"):
            writer.generate("a", **{name: value})  # type: ignore[arg-type]
    options = "Options: tokens, max_steps, temperature, top_k, top_p, seed"
    with pytest.raises(TypeError, match=f"'max_new_tokens'. {options}. Did you mean 'tokens'?"):
        writer.generate("a", max_new_tokens=1)
    with pytest.raises(ValueError, match=r"Did you mean 'small'\?"):
        tasks.lm.load("smal")


def test_what_is_no_text_is_refused(writer: writing.Writer) -> None:
    for prompts in (None, 5, b"a"):
        got = f"or an iterable of texts: got {type(prompts).__name__}"
        with pytest.raises(TypeError, match=f"^`prompts` must be text, {got}"):
            writer.generate(prompts)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Prompt 2 of the iterable must be text: got int\.$"):
        list(writer.generate(["a", 5], tokens=1))  # type: ignore[list-item]


def test_the_command_says_what_it_writes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "def ", "--tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("def ")
    assert "Writing with the model 'small' that comes with the package" in err

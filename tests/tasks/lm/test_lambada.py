"""Last words of passages."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from models import LanguageOutput
from tasks.lm.lambada import last_words, read_passages
from tasks.lm.tokenizer import ByteTokenizer


class Repeats(nn.Module):
    """Sure that the next token is the one before, with a probability of a half."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, ids: torch.Tensor, max_steps: int | None = None) -> LanguageOutput:
        probability = torch.full((*ids.shape, 257), 0.5 / 256)
        probability.scatter_(-1, ids[..., None], 0.5)
        return LanguageOutput(probability.log(), torch.zeros(*ids.shape, 1), None)


def test_a_word_is_right_as_a_whole() -> None:
    # A last word is predicted with the blank before it.
    found = last_words(Repeats(), ByteTokenizer(), ["so  ", "a b"], context=32)
    assert found["passages"] == 2
    assert found["lambada_accuracy"] == 0.5


def test_the_perplexity_is_that_of_words() -> None:
    found = last_words(Repeats(), ByteTokenizer(), ["a xy"], context=32)
    assert found["lambada_perplexity"] == pytest.approx(math.exp(3 * math.log(512)), rel=1e-4)


def test_a_long_passage_keeps_its_end() -> None:
    passage = "word " * 50 + "end"
    found = last_words(Repeats(), ByteTokenizer(), [passage], context=16)
    assert found["lambada_perplexity"] == pytest.approx(512**4, rel=1e-3)


@pytest.mark.parametrize(("word", "context"), [("x" * 8, 8), ("x" * 7, 8), ("x" * 20, 8), ("x", 1)])
def test_a_word_longer_than_the_context_is_predicted_in_parts(word: str, context: int) -> None:
    found = last_words(Repeats(), ByteTokenizer(), [f"some words {word}"], context=context)
    # The blank and the first letter differ from what is before them; all others repeat it.
    expected = 2 * math.log(512) + (len(word) - 1) * math.log(2)
    assert found["lambada_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert found["lambada_accuracy"] == 0.0
    found = last_words(Repeats(), ByteTokenizer(), ["a  " + " " * 20], context=context)
    assert found["lambada_accuracy"] == 1.0


@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\u2028", "\u00a0"])
def test_the_last_word_begins_after_any_blank(blank: str) -> None:
    passage = f"one two{blank}xy"
    found = last_words(Repeats(), ByteTokenizer(), [passage], context=32)
    tokens = list(passage.encode())[len("one two") - 1 :]
    nats = [math.log(2 if a == b else 512) for a, b in pairwise(tokens)]
    assert found["lambada_perplexity"] == pytest.approx(math.exp(sum(nats)), rel=1e-4)


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\u0085", "\\u001c", "\\n", "\\r\\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_at_its_end_only(inside: str, end: str, tmp_path: Path) -> None:
    """A JSON string may hold raw what `str.splitlines` takes for the end of a line."""
    path = tmp_path / "lambada.jsonl"
    line = f'{{"text": "she said{inside} then left"}}'
    path.write_bytes(f"{line}{end}{line}{end}".encode())
    assert read_passages(path) == [json.loads(line)["text"]] * 2


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(json.dumps({"text": " one two \n"}) + "\n\n" + json.dumps({"text": "a b"}))
    assert read_passages(path) == ["one two", "a b"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a b"}\n')
    assert read_passages(path) == ["a b"]


@pytest.mark.parametrize("line", [
    b'{"text": "caf\xe9 b"}', b'{"text": "half \\ud800"}', b"[" * 100_000, b'\xff\xfe{',
    b'{"text": "a b", "n": ' + b"9" * 5000 + b"}", b'{"text": ["a b"]}', b"null",
])  # fmt: skip
def test_a_bad_line_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_bytes(b'{"text": "a b"}\n' + line)
    with pytest.raises(ValueError, match="line 2: expected a JSON object") as caught:
        read_passages(path)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize(("line", "message"), [
    ("not json", "line 1: expected a JSON object"),
    ('{"words": 1}', "line 1: expected a JSON object"),
    ('{"text": "one"}', "needs two words"),
    ("", "has no passages"),
])  # fmt: skip
def test_what_is_no_passage(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        read_passages(path)

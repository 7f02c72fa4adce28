"""Last words of passages."""

import json
import math
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


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(json.dumps({"text": " one two \n"}) + "\n\n" + json.dumps({"text": "a b"}))
    assert read_passages(path) == ["one two", "a b"]


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

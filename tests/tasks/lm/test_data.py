"""Text, tokens, and the loss on them."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import LanguageOutput
from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.data import Batches, Corpus, encode, load_corpus, measure, read_texts, split
from tasks.lm.tokenizer import END, BytePairs, ByteTokenizer, load_tokenizer, train_tokenizer

TEXT = "def f(x):\n    return x  # \N{GREEK SMALL LETTER PI}\n" * 40


def test_the_default_text_is_on_every_machine_and_the_same_each_time() -> None:
    texts = read_texts(None, 300_000)
    assert sum(len(text.encode()) for text in texts) <= 300_000
    assert texts == read_texts(None, 300_000)
    assert read_texts(None, 600_000)[: len(texts) - 1] == texts[:-1]


def test_a_text_is_on_one_side_of_the_split_alone() -> None:
    texts = [f"text {i % 60}\n" * 9 for i in range(90)]
    train, held_out = split(texts, 0.05)
    assert set(train) | set(held_out) == set(texts)
    assert held_out
    assert not set(train) & set(held_out)


def test_a_single_text_is_cut_near_its_end() -> None:
    train, held_out = split(["a" * 1000], 0.05)
    assert (len(train[0]), len(held_out[0])) == (950, 50)


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no text at"):
        read_texts(tmp_path / "nowhere", 100)


def test_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match="has 5 bytes of text, too few"):
        read_texts(tmp_path, 10**6)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="has 0 bytes"):
        read_texts(empty, 10**6)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9" * 5000)
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text: byte 3 is 0xe9"):
        read_texts(path, 10**6)


@pytest.mark.parametrize("size", [257, 300])
def test_tokenizers_undo_themselves(size: int) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = train_tokenizer([TEXT], size)
    for text in (TEXT, "", "\N{SNOWMAN} \r\n\t\x00", " leading"):
        tokens = tokenizer.encode(text)
        assert END not in tokens
        assert all(0 <= token < size for token in tokens)
        assert tokenizer.decode([*tokens, END]) == text
        assert load_tokenizer(tokenizer.to_json()).encode(text) == tokens


def test_byte_pairs_are_fewer_than_bytes() -> None:
    pytest.importorskip("tokenizers")
    pairs = BytePairs.train([TEXT], 320)
    assert len(pairs.encode(TEXT)) < len(ByteTokenizer().encode(TEXT)) / 2


def test_targets_follow_their_tokens() -> None:
    config = LanguageConfig.of(vocabulary=257, context=8)
    corpus = Corpus(ByteTokenizer(), torch.arange(100), torch.arange(100))
    x, target = Batches(corpus, config).batch(5, torch.Generator().manual_seed(0), 0.0)
    assert x.shape == target.shape == (5, 8)
    assert torch.equal(target, x + 1)


def test_texts_end() -> None:
    assert encode(ByteTokenizer(), ["a", "bc"]).tolist() == [97, END, 98, 99, END]


def test_the_figures_of_a_model_that_knows_nothing() -> None:
    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(()))

        def forward(self, ids: torch.Tensor, max_steps: int | None = None) -> LanguageOutput:
            return LanguageOutput(torch.zeros(*ids.shape, 257), torch.zeros(*ids.shape, 1), None)

    config = LanguageConfig.of(vocabulary=257, context=16, eval_tokens=100)
    held_out = encode(ByteTokenizer(), ["x" * 200])
    figures = measure(Uniform(), Corpus(ByteTokenizer(), held_out, held_out), config)
    assert figures["tokens"] == 96
    assert figures["perplexity"] == pytest.approx(257, rel=1e-4)
    assert figures["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-4)


def test_a_context_longer_than_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 3000)
    with pytest.raises(ValueError, match="no more than one sequence of `context` = 2048"):
        load_corpus(LanguageConfig.of(text=path, vocabulary=257, context=2048))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"attractor-models\[lm\].*--vocabulary 257"):
        train_tokenizer([TEXT], 300)
    assert train_tokenizer([TEXT], 257).size == 257


def test_the_preset_of_shakespeare_has_the_split_of_nanogpt(tmp_path: Path) -> None:
    """The first 90 % of the characters, rounded down, are trained on."""
    path = tmp_path / "tinyshakespeare.txt"
    path.write_text("To be, or not to be.\n" * 1111)
    corpus = load_corpus(PRESETS["shakespeare"].changed(text=path))
    whole = len(path.read_text())
    assert len(corpus.train) == int(0.9 * whole) + 1  # and the end of the text
    assert len(corpus.held_out) == whole - int(0.9 * whole) + 1
    with pytest.raises(ValueError, match=r"no text at tinyshakespeare.txt. Download it from https"):
        load_corpus(PRESETS["shakespeare"])


def test_a_share_of_held_out_text_lies_between_none_and_all() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="`held_out` must be between 0 and 1"):
            PRESETS["shakespeare"].changed(held_out=share)

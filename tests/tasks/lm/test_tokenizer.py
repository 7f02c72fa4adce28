"""Descriptions of tokenizers: what is none of ours, or is of another model, is refused."""

import json
from typing import Any

import pytest

from tasks.lm.config import LanguageConfig
from tasks.lm.data import load_corpus
from tasks.lm.stream import load_batches
from tasks.lm.tokenizer import load_tokenizer, train_tokenizer

pytest.importorskip("tokenizers")

STATE = train_tokenizer(["the rain in Spain stays mainly in the plain " * 9], 270).to_json()
GOOD = json.loads(STATE)
VOCABULARY, MERGES = GOOD["model"]["vocab"], GOOD["model"]["merges"]


def changed(**settings: Any) -> str:
    """The description with other settings of the tokenizer."""
    return json.dumps({**GOOD, **settings})


def with_model(**settings: Any) -> str:
    """The description with other settings of its model."""
    return changed(model={**GOOD["model"], **settings})


BROKEN = {
    "no JSON": STATE[:-40],
    "nested": "[" * 100_000,
    "a number": "7",
    "empty": "{}",
    "no model": changed(model=None),
    "another model": with_model(type="WordPiece"),
    "dropout": with_model(dropout=0.5),
    "no vocabulary": with_model(vocab={}),
    "vocabulary as a list": with_model(vocab=list(VOCABULARY)),
    "a byte less": with_model(vocab={k: v for k, v in VOCABULARY.items() if k != "a"}),
    "a gap": with_model(vocab={**VOCABULARY, "the": 10**9}),
    "negative": with_model(vocab={**VOCABULARY, "a": -1}),
    "a flag": with_model(vocab={**VOCABULARY, "a": True}),
    "twice the same": with_model(vocab={**VOCABULARY, "a": VOCABULARY["b"]}),
    "no bytes": with_model(vocab={**VOCABULARY, "\u4e2d": len(VOCABULARY)}),
    "half a character": with_model(vocab={**VOCABULARY, "\ud800": len(VOCABULARY)}),
    "merges as text": with_model(merges="t h"),
    "a merge of three": with_model(merges=[["t", "h", "e"]]),
    "a merge of numbers": with_model(merges=[[1, 2]]),
    "a merge of one number": with_model(merges=[1]),
    "an unknown merge": with_model(merges=[["z", "q"]]),
    "padding": changed(padding={"strategy": {"Fixed": 10**9}, "direction": "Right"}),
    "a normaliser": changed(normalizer={"type": "Lowercase"}),
    "another split": changed(pre_tokenizer={"type": "Whitespace"}),
    "an unknown setting": changed(evil=True),
}


@pytest.mark.parametrize("state", BROKEN.values(), ids=BROKEN)
def test_broken_descriptions_are_refused(state: str) -> None:
    with pytest.raises(ValueError, match=r"The tokenizer is broken: .*Use another file"):
        load_tokenizer(state)


def test_a_tokenizer_of_another_model_is_refused_before_any_text_is_read() -> None:
    size = len(VOCABULARY) + 1
    assert load_tokenizer(STATE, size).size == load_tokenizer(STATE, size + 1).size == size
    config = LanguageConfig.of(vocabulary=size - 1, text="/nowhere")
    stream = LanguageConfig.of(vocabulary=size - 1, dataset="nobody/nothing")
    for load in (
        lambda: load_tokenizer(STATE, size - 1),
        lambda: load_corpus(config, STATE),
        lambda: load_batches(stream, STATE),
    ):
        with pytest.raises(ValueError, match=f"has {size} tokens.* vocabulary has {size - 1}"):
            load()
    # Bytes alone, where the model has learned pairs.
    with pytest.raises(ValueError, match=r"has 257 tokens \(bytes\)"):
        load_tokenizer("", size)


def test_merges_in_the_form_of_earlier_versions() -> None:
    older = with_model(merges=[" ".join(pair) for pair in MERGES])
    text = "the rain, the plain"
    assert load_tokenizer(older).encode(text) == load_tokenizer(STATE).encode(text)

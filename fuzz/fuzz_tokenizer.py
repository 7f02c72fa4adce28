"""Tokenizers of other people's files; see `entry`.

A state is refused by a `ValueError`, or makes a tokenizer whose tokens lie within its size and
which takes any text.
"""

import json
import sys

import atheris
from entry import changed, fuzz, instrumented

with instrumented("tasks.lm.tokenizer"):
    from tasks.lm.tokenizer import BytePairs, load_tokenizer

WORDS = [*"abcdefghij", "a b", "ab abc", "naïve", "x = 1\n"] * 20
STATE = json.loads(BytePairs.train(WORDS, 270).to_json())
# Its vocabulary is long and would draw nearly all changes.
VOCABULARY = STATE["model"].pop("vocab")
TEXTS = ("", "ab abc", "\0\u2028é\U0001f600", "x" * 100)


def one_input(data: bytes) -> None:
    """A changed state; every second time one with a changed vocabulary, and sometimes any text."""
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.ConsumeIntInRange(0, 7)
    vocabulary = changed(VOCABULARY, provider) if kind & 1 else VOCABULARY
    state = changed(STATE, provider) if kind & 6 else json.loads(json.dumps(STATE))
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state["model"].setdefault("vocab", vocabulary)
    text = provider.ConsumeUnicode(400) if kind == 7 else json.dumps(state)
    try:
        tokenizer = load_tokenizer(text)
    except ValueError:
        return
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        if not all(0 <= token < tokenizer.size for token in tokens):
            raise AssertionError(f"{tokens} of {tokenizer.size}")
        tokenizer.decode(tokens)


if __name__ == "__main__":
    sys.setrecursionlimit(5000)
    fuzz(one_input, "tokenizer", [bytes(range(i, i + 40)) for i in range(0, 200, 40)])

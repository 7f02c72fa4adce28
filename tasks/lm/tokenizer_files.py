"""Files of the package `tokenizers`: what they may hold, and what is wrong with others."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

BYTES = 256
END = 256
"""The token after every text, in all kinds."""
# How the state of a tokenizer of released models begins; see `tasks.lm.released_tokenizer`.
RELEASED = '{"released": '


def over_bytes(model: Any) -> Any:
    """A tokenizer of the package, of this model over bytes."""
    package = tokenizers_package()
    inner = package.Tokenizer(model)
    inner.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = package.decoders.ByteLevel()
    return inner


def vocabulary_and_merges(
    state: str, like: Any = None, free: Sequence[str] = ()
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read a description of byte pairs, which may be of a stranger, and trust nothing in it.

    Args:
        state: The description.
        like: A tokenizer of the package, whose settings it must have; by default one of ours.
        free: Settings in which it may differ.

    Raises:
        ValueError: It is broken, or has settings that these tokenizers do not have.
    """
    package = tokenizers_package()
    found = read_object(state)
    ours = json.loads((like or over_bytes(package.models.BPE())).to_str())
    found = _settings(found, ours, ("version", "model", *free))
    model = _settings(found["model"], ours["model"], ("vocab", "merges"))
    vocabulary, merges = model["vocab"], model["merges"]
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise broken("it has no `vocab` and `merges`")
    numbers = list(vocabulary.values())
    if any(type(n) is not int for n in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise broken("its tokens are not numbered from 0 on without a gap")
    alphabet = set(package.pre_tokenizers.ByteLevel.alphabet())
    if not alphabet <= set(vocabulary) or not alphabet.issuperset("".join(vocabulary)):
        raise broken("it lacks some of the 256 bytes, or has tokens that do not consist of them")
    known, pairs = set(vocabulary), []
    for merge in merges:
        # Earlier versions of the package wrote the two tokens as one text.
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise broken("a merge is not of tokens")
        if len(parts) != 2 or not {*parts, "".join(parts)} <= known:
            raise broken("a merge is not of two tokens to a third one")
        pairs.append((parts[0], parts[1]))
    return vocabulary, pairs


def read_object(state: str) -> Any:
    """Read a description as JSON.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(state)
    except (ValueError, RecursionError) as error:
        raise broken(f"it is not JSON ({error})") from error


def _settings(found: Any, ours: Mapping[str, Any], free: Sequence[str]) -> dict[str, Any]:
    """Check that a JSON object equals ours but for the keys that are `free`, which it must have."""
    if not isinstance(found, dict) or not set(free) <= set(found):
        raise broken(f"it has no {' and '.join(f'`{name}`' for name in free)}")
    for name in sorted({*found, *ours} - set(free)):
        # Versions of the package leave out what is off, or do not know it.
        if (found.get(name) or None) != (ours.get(name) or None):
            raise broken(f"it has another `{name[:100]}` than our tokenizers")
    return found


def broken(problem: str) -> ValueError:
    """The error that says what is wrong with a tokenizer."""
    return ValueError(f"The tokenizer is broken: {problem}. Use another file, or train again.")


def tokenizers_package() -> Any:
    """The package `tokenizers`.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "Byte-pair encoding needs the package `tokenizers`: install the extra with `pip "
            "install 'attractor-models[lm]'`, or train on bytes with `--vocabulary 257`."
        ) from error
    return tokenizers

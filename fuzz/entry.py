"""What all fuzzers share: their start, their seeds, and a way to change JSON values.

    .venv/bin/pip install -c constraints.txt atheris
    PYTHONPATH=.:tests/support .venv/bin/python fuzz/fuzz_csv.py

runs for five minutes. Seeds, what is found to reach new code, and inputs that fail are kept in
`/tmp/fuzz-<name>`, so that a next call goes on from there; a file of it as an argument runs it
alone. Further arguments are libFuzzer's.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atheris

VALUES = (
    None, True, False, 0, 1, -1, 3, 2**15, 2**31, 2**40, 2**63, 2**64, 10**400, 0.0, 0.5, 1e-300,
    1e308, float("inf"), float("nan"), "", "x", "\ud800", "\0", [], [0], [[]] * 3, {}, {"x": 1},
)  # fmt: skip


def instrumented(*packages: str) -> Any:
    """A context in which these packages are imported so that their branches are seen."""
    return atheris.instrument_imports(include=list(packages))


def folder(name: str) -> Path:
    """Where a fuzzer keeps its files."""
    path = Path(tempfile.gettempdir()) / f"fuzz-{name}"
    path.mkdir(exist_ok=True)
    return path


def fuzz(one_input: Callable[[bytes], None], name: str, seeds: Sequence[bytes] = ()) -> None:
    """Call `one_input` with changed seeds until it raises, hangs or takes 3 GB, or time is over."""
    corpus = folder(name) / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = ["-max_total_time=300", "-timeout=60", "-rss_limit_mb=3072", "-max_len=4096"]
    prefix = f"-artifact_prefix={folder(name)}/"
    alone = any(Path(argument).is_file() for argument in sys.argv[1:])
    inputs = [] if alone else [str(corpus)]
    atheris.Setup([sys.argv[0], *options, prefix, *sys.argv[1:], *inputs], one_input)
    atheris.Fuzz()


def changed(value: Any, data: atheris.FuzzedDataProvider) -> Any:
    """A JSON value with up to three parts of it replaced, deleted or repeated elsewhere."""
    root = [json.loads(json.dumps(value))]
    for _ in range(data.ConsumeIntInRange(1, 3)):
        _change(root, data)
    return root[0]


def _change(root: list[Any], data: atheris.FuzzedDataProvider) -> None:
    part: Any = root
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = keys[data.ConsumeIntInRange(0, len(keys) - 1)]
        inner = part[key]
        if not (isinstance(inner, dict | list) and inner) or data.ConsumeIntInRange(0, 9) == 0:
            break
        part = inner
    kind = data.ConsumeIntInRange(0, 5)
    if kind == 0 and isinstance(part, dict):
        del part[key]
    elif kind == 1 and isinstance(part, dict):
        part[data.ConsumeUnicode(8)] = copy.deepcopy(inner)
    elif kind == 2:
        part[key] = data.ConsumeUnicode(12)
    elif kind == 3:
        part[key] = data.ConsumeInt(8)
    else:
        part[key] = copy.deepcopy(VALUES[data.ConsumeIntInRange(0, len(VALUES) - 1)])

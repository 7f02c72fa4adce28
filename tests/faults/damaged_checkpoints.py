"""Checkpoints, Hub folders and tokenizers that are damaged, or claim what their tensors are not."""

import copy
import functools
import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import CLEANUP, Fault, must_refuse
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.sharded_manager import ShardedCheckpointManager
from tasks.distributed import Group
from tasks.lm.config import LanguageConfig
from tasks.lm.hub import PretrainedLM
from tasks.lm.tokenizer import BytePairs, load_tokenizer
from tasks.runs import load_model
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.task import SudokuTask

GRID = SudokuConfig.of(side=4, min_clues=6, max_clues=8, width=8)
TEXT = LanguageConfig.of(vocabulary=257, width=16, num_heads=2, backbone_blocks=1, context=16)


def average(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a checkpoint of this model."""
    return {"average": {f"module.{n}": t for n, t in model.state_dict().items()}}


@functools.cache
def grid() -> Checkpoint:
    """A checkpoint of Sudokus."""
    meta = {"task": "sudoku", "preset": "tiny", "config": GRID.to_json(), "history": [], "step": 1}
    return Checkpoint(average(GRID.build()), meta)


@functools.cache
def text() -> Checkpoint:
    """A checkpoint of a language model."""
    meta = {"task": "lm", "preset": "tiny", "config": TEXT.to_json(), "tokenizer": ""}
    return Checkpoint(average(TEXT.build()), meta)


@functools.cache
def hub() -> Path:
    """A folder in the Hub's form."""
    folder = Path(tempfile.mkdtemp(prefix="fault-hub-"))
    CLEANUP.callback(shutil.rmtree, folder, ignore_errors=True)
    PretrainedLM(TEXT.to_json(), "").save_pretrained(folder)
    return folder


@functools.cache
def pairs() -> dict[str, Any]:
    """The state of a tokenizer with 270 tokens."""
    return json.loads(BytePairs.train(["ab abc", "a b", "naïve"] * 20, 270).to_json())


def load_grid(path: Path) -> Any:
    """As `eval`, `solve` and `serve` load it."""
    return load_model(SudokuTask(), path, device="cpu")


# Values by the name of an option, wherever it is: what a stranger may claim.
CLAIMS: list[tuple[str, Any]] = [
    ("width", 2**14), ("width", 2**20), ("width", 2**40), ("width", 10**400), ("width", 0),
    ("width", -8), ("width", "8"), ("width", 8.5), ("width", None), ("width", float("nan")),
    ("width", [8]), ("width", True), ("side", 10**6), ("side", 5), ("side", "4"),
    ("vocabulary", 2**31), ("vocabulary", 0), ("backbone_blocks", 10**9),
    ("backbone_blocks", 10**4), ("backbone_blocks", -1), ("refiner_blocks", 10**9),
    ("num_heads", 3), ("num_heads", 0), ("num_heads", 2**30), ("expansion", 1e30),
    ("expansion", -1.0), ("name", "evil"), ("name", ""), ("name", None), ("name", ["deq"]),
    ("solver", "evil"), ("solver", 3), ("rtol", float("nan")), ("rtol", -1.0), ("layout", "evil"),
]  # fmt: skip


def claimed(config: dict[str, Any], option: str, value: Any) -> dict[str, Any] | None:
    """The configuration with another value of an option; None if it has none of this name."""
    changed = copy.deepcopy(config)
    for section in changed.values():
        if isinstance(section, dict) and option in section:
            section[option] = value
            return changed
    return None


def claim(kind: str, option: str, value: Any, folder: Path) -> None:
    """The configuration claims what the tensors are not."""
    base = (GRID if kind == "grid" else TEXT).to_json()
    config = claimed(base, option, value)
    assert config is not None
    path = folder / "checkpoint.safetensors"
    if kind == "grid":
        Checkpoint(grid().tensors, {**grid().meta, "config": config}).save(path)
        must_refuse(lambda: load_grid(path))
    elif kind == "text":
        Checkpoint(text().tensors, {**text().meta, "config": config}).save(path)
        must_refuse(lambda: PretrainedLM.of_checkpoint(path))
    else:
        shutil.copytree(hub(), folder / "hub")
        settings = json.dumps({"settings": config, "tokenizer": ""})
        (folder / "hub" / "config.json").write_text(settings)
        must_refuse(lambda: PretrainedLM.from_pretrained(folder / "hub"))


def damaged_file(damage: Callable[[bytes], bytes], folder: Path) -> None:
    """The bytes of a checkpoint are not those that were written."""
    path = folder / "checkpoint.safetensors"
    grid().save(path)
    path.write_bytes(damage(path.read_bytes()))
    must_refuse(lambda: load_grid(path), str(path))


def damaged_shards(damage: Callable[[Path], object], folder: Path) -> None:
    """A checkpoint of many files, of which one is not as it was."""
    manager = ShardedCheckpointManager(folder, Group.current())
    manager.save(grid())
    manager.finish()
    damage(manager.newest)
    must_refuse(lambda: load_grid(manager.newest), str(manager.newest))


def other_weights(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    """The tensors are others than those of the model that the file describes."""
    tensors = dict(grid().tensors["average"])
    change(tensors)
    path = folder / "checkpoint.safetensors"
    Checkpoint({"average": tensors}, grid().meta).save(path)
    must_refuse(lambda: load_grid(path), str(path))


def other_meta(meta: Any, folder: Path) -> None:
    """The meta data lack something, or have something else."""
    path = folder / "checkpoint.safetensors"
    Checkpoint(grid().tensors, meta).save(path)
    must_refuse(lambda: load_grid(path), str(path))


def other_hub(change: Callable[[Path], object], folder: Path) -> None:
    """A folder of the Hub that is not whole, or has something else."""
    shutil.copytree(hub(), folder / "hub")
    change(folder / "hub")
    must_refuse(lambda: PretrainedLM.from_pretrained(folder / "hub"))


def change_weights(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    """Other tensors in the file of a Hub folder."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def tokenizer(state: str, folder: Path) -> None:
    """A tokenizer that is broken is refused, or else takes any text, with tokens that it has."""
    found = load_tokenizer(state)
    for text in ("", "ab abc", "\0\u2028\xe9\U0001f600"):
        tokens = found.encode(text)
        assert all(0 <= token < found.size for token in tokens), (tokens, found.size)
        assert found.decode(tokens) == text, text


def large_tokenizer(folder: Path) -> None:
    """A tokenizer with more tokens than the model has."""
    meta = {**text().meta, "tokenizer": json.dumps(pairs())}
    Checkpoint(text().tensors, meta).save(folder / "checkpoint.safetensors")
    must_refuse(lambda: PretrainedLM.of_checkpoint(folder / "checkpoint.safetensors"), "257")


def flip(at: float, content: bytes) -> bytes:
    """One bit at a place between 0 and 1."""
    place = int(at * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def header(content: Any) -> bytes:
    """A safetensors file with a header of ours and no tensors."""
    head = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(head)) + head


def tensor(shape: list[int], end: int) -> dict[str, Any]:
    """The header's entry of a tensor."""
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


def described(**fields: str) -> bytes:
    """A file of meta data alone."""
    return header({"__metadata__": fields})


FIRST = "attractor-models-1"  # the format without a checksum
FILES: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "zeros": bytes(10**6),
    "a pickle": b"\x80\x04N.",
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "no header": header(b""),
    "deep nesting": header(b"[" * 10**5),
    "a list": header([]),
    "a tensor of 2**60": header({"a": tensor([2**60], 4)}) + b"1234",
    "a tensor beyond the file": header({"a": tensor([1], 400)}),
    "10,000 empty tensors": header({str(i): tensor([0], 0) for i in range(10_000)}),
    "no meta data": described(format="attractor-models-2"),
    "deep meta data": described(format=FIRST, meta="[" * 10**5),
    "meta data of a number": described(format=FIRST, meta="9" * 5000),
}
WEIGHTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "one is missing": lambda t: t.pop(next(iter(t))),
    "all are missing": lambda t: t.clear(),
    "one is foreign": lambda t: t.update({"module.evil": torch.zeros(3)}),
    "one has another shape": lambda t: t.update({next(iter(t)): torch.zeros(3, 3, 3)}),
    "one has no entries": lambda t: t.update({next(iter(t)): torch.zeros(0)}),
}
SHARDS: dict[str, Callable[[Path], object]] = {
    "one is missing": lambda f: next(f.glob("*.safetensors")).unlink(),
    "one is cut": lambda f: truncate(next(f.glob("*.safetensors"))),
    "one has a bit flipped": lambda f: rewrite(next(f.glob("*.safetensors")), partial(flip, 0.9)),
    "no manifest": lambda f: next(f.glob("*.json")).unlink(),
    "the manifest is cut": lambda f: truncate(next(f.glob("*.json"))),
    "the manifest is nested": lambda f: rewrite(next(f.glob("*.json")), lambda c: b"[" * 10**5),
    "a bit of the manifest": lambda f: rewrite(next(f.glob("*.json")), partial(flip, 0.5)),
    "the manifest is no text": lambda f: rewrite(next(f.glob("*.json")), lambda c: b"\xff" * 99),
}
HUBS: dict[str, Callable[[Path], object]] = {
    **{f"weights: {name}": partial(change_weights, change) for name, change in WEIGHTS.items()},
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "weights are cut": lambda f: truncate(f / "model.safetensors"),
    "no configuration": lambda f: (f / "config.json").unlink(),
    "the configuration is cut": lambda f: truncate(f / "config.json"),
    "the configuration is a list": lambda f: (f / "config.json").write_text("[]"),
    "the configuration is empty": lambda f: (f / "config.json").write_text("{}"),
    "the configuration is nested": lambda f: (f / "config.json").write_text("[" * 10**5),
    "no tokenizer": lambda f: (f / "config.json").write_text('{"settings": {}}'),
    "a broken tokenizer": lambda f: with_tokenizer(f, "{}"),
    "a tokenizer that is too large": lambda f: with_tokenizer(f, json.dumps(pairs())),
    "a tokenizer that is a number": lambda f: with_tokenizer(f, 3),
}  # fmt: skip


def with_tokenizer(folder: Path, state: Any) -> None:
    """Another tokenizer in a Hub folder."""
    content = {"settings": TEXT.to_json(), "tokenizer": state}
    (folder / "config.json").write_text(json.dumps(content))


def truncate(path: Path) -> None:
    """Leave the first half."""
    rewrite(path, lambda content: content[: len(content) // 2])


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a file."""
    path.write_bytes(change(path.read_bytes()))


def states() -> dict[str, str]:
    """Tokenizers that are broken."""
    whole = pairs()
    model = whole["model"]
    no_bytes = dict(list(model["vocab"].items())[5:])
    gaps = {name: 3 * i for name, i in model["vocab"].items()}
    words = {"type": "WordLevel", "vocab": {}, "unk_token": "x"}
    return {
        "text": "hello",
        "an empty object": "{}",
        "cut": json.dumps(whole)[:300],
        "nested": "[" * 10**5,
        "another kind": json.dumps({**whole, "model": words}),
        "no bytes": json.dumps({**whole, "model": {**model, "vocab": no_bytes, "merges": []}}),
        "numbers have gaps": json.dumps({**whole, "model": {**model, "vocab": gaps}}),
        "half of a surrogate pair": '"\\ud800"',
        "a number": "9" * 5000,
    }


def faults() -> list[Fault]:
    """All faults of this kind."""
    found: list[Fault] = []
    places = random.Random(0)
    for at in (0.0, 1.0, *(places.random() for _ in range(10))):
        found.append(
            (f"checkpoint: bit flipped at {at:.2f}", partial(damaged_file, partial(flip, at)))
        )
    for share in (0.0, 0.001, 0.3, 0.7, 0.999):
        cut = partial(damaged_file, lambda c, share=share: c[: int(share * len(c))])
        found.append((f"checkpoint: cut at {share}", cut))
    for name, content in FILES.items():
        found.append((f"checkpoint: {name}", partial(damaged_file, lambda _, c=content: c)))
    for name, change in WEIGHTS.items():
        found.append((f"checkpoint: weights: {name}", partial(other_weights, change)))
    for key, value in {"task": "maze", "config": 3}.items():
        other, less = {**grid().meta, key: value}, {**grid().meta}
        del less[key]
        found.append((f"checkpoint: {key} {value!r}", partial(other_meta, other)))
        found.append((f"checkpoint: no {key}", partial(other_meta, less)))
    for kind, config in (("grid", GRID), ("text", TEXT), ("hub", TEXT)):
        for option, value in CLAIMS:
            if claimed(config.to_json(), option, value) is not None:
                shown = str(value)[:12]
                found.append(
                    (f"{kind} claims {option} = {shown}", partial(claim, kind, option, value))
                )
    found += [
        (f"shards: {name}", partial(damaged_shards, damage)) for name, damage in SHARDS.items()
    ]
    found += [(f"hub: {name}", partial(other_hub, change)) for name, change in HUBS.items()]
    found += [(f"tokenizer: {name}", partial(tokenizer, state)) for name, state in states().items()]
    found.append(("tokenizer: larger than the vocabulary", large_tokenizer))
    return found

"""Two processes with half of each batch: the losses of one process with all of it."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from tasks import distributed as parallel
from tasks.checkpoints import sharded
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.lm.config import LanguageConfig
from tasks.lm.data import Batches, Corpus
from tasks.lm.tokenizer import train_tokenizer
from tasks.puzzles.experiment import Batches as GridBatches
from tasks.sudoku.board import Board
from tasks.sudoku.config import SudokuConfig
from tasks.sudoku.generate import generate
from tasks.sudoku.task import SudokuTask
from tasks.training.stop_signal import Interrupted
from tasks.training.trainer import Trainer

HAS_GLOO = distributed.is_available() and distributed.is_gloo_available()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_GLOO, reason="no gloo"),
    # After six steps the reasoner's map is still much as it was drawn.
    pytest.mark.filterwarnings("ignore:Step .. the map does not contract"),
]
STEPS = 6
# Budgets and tolerances at which the halves of a batch need unequal numbers of calls.
PUZZLES: dict[str, Any] = {
    "side": 4, "min_clues": 6, "max_clues": 8, "steps": STEPS, "width": 8, "batch_size": 4,
    "segments": 2, "train_max_steps": 30, "rtol": 1e-2, "learning_rate": 1e-2, "warmup": 1,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "vocabulary": 257, "context": 16, "width": 16, "num_heads": 2, "backbone_blocks": 1,
    "steps": STEPS, "batch_size": 4, "train_max_steps": 30, "rtol": 1e-2, "eval_tokens": 64,
    "warmup": 1,
}  # fmt: skip
CASES: dict[str, Any] = {
    "sudoku": SudokuConfig.of(**PUZZLES, refill=True),
    "reasoner": SudokuConfig.of(**PUZZLES, model="reasoner", halting="q-learning", refill=True),
    "lm": LanguageConfig.of(**TEXT, optimizer="adamw", backward="exact"),
    "lm-muon": LanguageConfig.of(**TEXT),
}
# Each process takes its two rows one by one, and trains as one process does with all at once.
IN_PARTS: dict[str, Any] = {
    "reasoner in parts": CASES["reasoner"].changed(accumulate=2),
    "lm in parts": CASES["lm-muon"].changed(accumulate=2, checkpoint_activations=True),
}
WHOLE = {"reasoner in parts": "reasoner", "lm in parts": "lm-muon"}
KINDS = ("ddp", "fsdp")
FORMS = ("file", "sharded")


def make(name: str, kind: str, folder: Path, form: str = "file") -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CASES, **IN_PARTS}[name].changed(parallel=kind, checkpoints=form)
    torch.manual_seed(0)
    if isinstance(config, LanguageConfig):
        tokens = torch.randint(60, 120, (2000,), generator=torch.Generator().manual_seed(1))
        batches: Any = Batches(Corpus(train_tokenizer([], 257), tokens, tokens[:80]), config)
    else:
        task, puzzles = SudokuTask(), generate(16, Board.of(4), clues=(6, 8), seed=3)
        held_out = task.encode(puzzles[:4], config)
        batches = GridBatches(task.sampler(puzzles, config), len(puzzles), held_out, max_steps=4)
    model, max_steps = config.build().double(), config.solve.train_steps
    return Trainer(batches, model, config, folder, max_steps=max_steps, meta={})


def log_every_step(trainer: Trainer) -> list[float]:
    losses: list[float] = []
    inner = trainer._log

    def note(figures: dict[str, float], reporter: Any) -> None:
        losses.append(figures["loss"])
        inner(figures, reporter)

    trainer._log = note  # type: ignore[method-assign]
    return losses


def note_calls(trainer: Trainer) -> list[int]:
    """For each call of the map that is solved, the step that it belongs to."""
    steps: list[int] = []
    solving: Any = trainer.model.solving
    solving.module.register_forward_pre_hook(lambda *_: steps.append(trainer.step))
    return steps


def stop_after(trainer: Trainer, step: int) -> None:
    """Only the first process gets the signal."""
    inner = trainer.task.batch

    def batch(*args: Any) -> Any:
        if trainer.step == step and trainer.group.first:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(*args)

    trainer.task.batch = batch  # type: ignore[method-assign]


def work(rank: int, folder: Path, port: int) -> None:
    """One process; runs every case, so that torch is loaded once."""
    torch.set_num_threads(1)
    parallel.PATIENCE = timedelta(seconds=100)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    found = {}
    try:
        with parallel.init():
            for name in (*CASES, *IN_PARTS):
                for kind in KINDS:
                    found[name, kind] = train(name, kind, folder)
            for first, second in (KINDS, KINDS[::-1]):
                for form in FORMS:
                    found["over", second, form] = go_on("sudoku", first, second, folder, form)
            found["one to two"] = go_on_from(folder / "one-half" / "checkpoint", "fsdp")
            found["failed"] = fail_to_write(rank, folder / "failed")
            torch.save(found, folder / f"{rank}.pt")
            left_alone(rank, folder)
    except ConnectionError as error:
        (folder / "message").write_text(str(error))


def train(name: str, kind: str, folder: Path) -> dict[str, Any]:
    trainer = make(name, kind, folder / f"{name}-{kind}")
    losses, calls = log_every_step(trainer), note_calls(trainer)
    with counted_exchanges(trainer) as exchanges:
        trainer.run()
    return {"losses": losses, "calls": calls, "exchanges": len(exchanges)}


@contextlib.contextmanager
def counted_exchanges(trainer: Trainer) -> Iterator[list[None]]:
    """An entry for each collective that sums gradients."""
    exchanges: list[None] = []
    network, scatter = trainer.network, distributed.reduce_scatter_single

    def counted(*args: Any, **kwargs: Any) -> Any:
        exchanges.append(None)
        return scatter(*args, **kwargs)

    def summed(_: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        exchanges.append(None)
        return default_hooks.allreduce_hook(distributed.group.WORLD, bucket)

    if isinstance(network, DistributedDataParallel):
        network.register_comm_hook(None, summed)
    distributed.reduce_scatter_single = counted
    try:
        yield exchanges
    finally:
        distributed.reduce_scatter_single = scatter


def go_on(name: str, first: str, second: str, folder: Path, form: str) -> dict[str, Any]:
    """Stop with one kind after half of the steps, and go on with the other."""
    place = folder / f"over-{second}-{form}"
    begun = make(name, first, place, form)
    losses = log_every_step(begun)
    stop_after(begun, STEPS // 2 - 1)
    with contextlib.suppress(Interrupted):
        begun.run()
    parallel.Group.current().broadcast(None)  # the file is there
    if begun.group.first:
        keep_half(begun.path)
    ended = make(name, second, place, form)
    ended.restore(Checkpoint.load(begun.path))
    parallel.Group.current().broadcast(None)
    later = log_every_step(ended)
    ended.run()
    return {"losses": losses + later, "begun": len(losses)}


def keep_half(path: Path) -> None:
    copy = shutil.copytree if path.is_dir() else shutil.copyfile
    copy(path, path.with_name("half"))


def go_on_from(path: Path, kind: str) -> dict[str, Any]:
    """Two processes go on from a checkpoint that one has written."""
    trainer = make("sudoku", kind, path.parents[1] / f"from-one-{kind}", "sharded")
    trainer.restore(Checkpoint.load(path))
    parallel.Group.current().broadcast(None)
    losses = log_every_step(trainer)
    trainer.run()
    return {"losses": losses}


def fail_to_write(rank: int, folder: Path) -> dict[str, Any]:
    """The disk of one process refuses its file for two of the steps."""
    trainer = make("sudoku", "fsdp", folder, "sharded")
    trainer.config = trainer.config.changed(save_every=1e-9)
    real, seen = sharded.checksum, []

    def failing(path: Path) -> str:
        if rank == 1 and trainer.manager.saving in (3, 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path)

    note = trainer.manager._note

    def spy(step: int, failure: OSError | None) -> None:
        seen.append((step, str(failure)))
        note(step, failure)

    trainer.manager._note = spy  # type: ignore[method-assign]
    sharded.checksum = failing
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.run()
    sharded.checksum = real
    messages = [text for warning in said if "not saved" in (text := str(warning.message))]
    return {"seen": seen, "said": messages, "step": trainer.manager.step}


def left_alone(rank: int, folder: Path) -> None:
    """The second process dies."""
    trainer = make("sudoku", "ddp", folder / "alone")
    inner = trainer._train_segment

    def segment() -> dict[str, float]:
        if rank == 1 and trainer.step == 2:
            os._exit(0)
        return inner()

    trainer._train_segment = segment  # type: ignore[method-assign]
    trainer.run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = make("sudoku", "ddp", folder / "one-half", "sharded")
    stop_after(one, STEPS // 2 - 1)
    with pytest.raises(Interrupted):
        one.run()
    spawn(work, (folder, port), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[Any, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process."""
    folder = tmp_path_factory.mktemp("one")
    return {name: train(name, "ddp", folder) | {"folder": folder / f"{name}-ddp"} for name in CASES}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*CASES, *IN_PARTS])
def test_losses_are_those_of_one_process(
    name: str, kind: str, found: list[dict[Any, Any]], alone: dict[str, Any], folder: Path
) -> None:
    expected = alone[WHOLE.get(name, name)]["losses"]
    assert len(expected) == STEPS
    for process in found:
        assert process[name, kind]["losses"] == pytest.approx(expected, rel=1e-9)
    ours = Checkpoint.load(folder / f"{name}-{kind}" / "checkpoint.safetensors")
    one = Checkpoint.load(alone[WHOLE.get(name, name)]["folder"] / "checkpoint.safetensors")
    assert {g: set(t) for g, t in ours.tensors.items()} == {
        g: set(t) for g, t in one.tensors.items()
    }
    assert torch.equal(ours.tensors["random"]["data"], one.tensors["random"]["data"])
    for name in ("x", "target", "age"):
        assert torch.equal(ours.tensors["slots"][name], one.tensors["slots"][name])
    for name, tensor in one.tensors["average"].items():
        # A bias that all classes share has a gradient of rounding alone, which AdamW scales up.
        if tensor.numel() > 1:
            torch.testing.assert_close(ours.tensors["average"][name], tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IN_PARTS)
def test_gradients_are_exchanged_once_a_step(
    name: str, kind: str, found: list[dict[Any, Any]]
) -> None:
    for process in found:
        assert process[name, kind]["exchanges"] == process[WHOLE[name], kind]["exchanges"] > 0


def test_processes_needed_unequal_numbers_of_calls(found: list[dict[Any, Any]]) -> None:
    """Otherwise the tests above say nothing of dead-locks."""
    for name in ("sudoku", "lm", "lm-muon"):
        for kind in KINDS:
            first, second = (process[name, kind]["calls"] for process in found)
            assert first != second, (name, kind)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_the_other_kind(
    kind: str, form: str, found: list[dict[Any, Any]], alone: dict[str, Any]
) -> None:
    """And a signal to one process stops all of them after the same step."""
    for process in found:
        ours = process["over", kind, form]
        assert ours["begun"] == STEPS // 2
        assert ours["losses"] == pytest.approx(alone["sudoku"]["losses"], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_of_a_checkpoint_changes_no_number(
    kind: str, found: list[dict[Any, Any]], folder: Path
) -> None:
    for process in found:
        assert process["over", kind, "sharded"] == process["over", kind, "file"]
    places = [folder / f"over-{kind}-{form}" for form in FORMS]
    file, shards = (Checkpoint.load(place / "half") for place in places)
    assert {g: set(t) for g, t in file.tensors.items()} == {
        g: set(t) for g, t in shards.tensors.items()
    }
    for group, tensors in file.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(shards.tensors[group][name], tensor), (group, name)


def test_each_process_writes_its_share(folder: Path, found: list[dict[Any, Any]]) -> None:
    """Of what begun under FSDP, about half."""
    shards = sorted((folder / "over-ddp-sharded" / "half").glob("*.safetensors"))
    assert len(shards) == 2
    sizes = [path.stat().st_size for path in shards]
    assert max(sizes) < 0.6 * sum(sizes)


def test_two_processes_go_on_from_the_shards_of_one(
    found: list[dict[Any, Any]], alone: dict[str, Any]
) -> None:
    for process in found:
        expected = alone["sudoku"]["losses"][STEPS // 2 :]
        assert process["one to two"]["losses"] == pytest.approx(expected, rel=1e-9)


def test_a_write_that_fails_in_one_process_fails_in_both_and_ends_no_run(
    found: list[dict[Any, Any]], folder: Path
) -> None:
    for process in found:
        steps = [step for step, failure in process["failed"]["seen"] if failure != "None"]
        assert steps == [3, 4]
        assert process["failed"]["step"] == STEPS
        assert len(process["failed"]["said"]) == 2
        assert "No space left" in process["failed"]["said"][0]
    assert Checkpoint.load(folder / "failed" / "checkpoint").meta["step"] == STEPS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_processes_goes_on_in_one(
    kind: str, form: str, folder: Path, alone: dict[str, Any], tmp_path: Path,
    found: list[dict[Any, Any]],
) -> None:  # fmt: skip
    trainer = make("sudoku", "ddp", tmp_path)
    trainer.restore(Checkpoint.load(folder / f"over-{kind}-{form}" / "half"))
    losses = log_every_step(trainer)
    trainer.run()
    assert losses == pytest.approx(alone["sudoku"]["losses"][STEPS // 2 :], rel=1e-9)


def test_only_the_first_process_writes(folder: Path, found: list[dict[Any, Any]]) -> None:
    log = (folder / "sudoku-ddp" / "log.jsonl").read_text()
    steps = [json.loads(row)["step"] for row in log.splitlines()]
    assert steps == sorted(set(steps))


def test_a_process_that_loses_the_others_says_so(folder: Path, found: list[dict[Any, Any]]) -> None:
    message = (folder / "message").read_text()
    assert "Process 0 of 2 lost another one" in message
    assert "--resume" in message


def test_a_split_that_leaves_a_rest_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(parallel.Group, "current", lambda: parallel.Group(0, 3))
    with pytest.raises(ValueError, match="`batch_size` = 4 cannot be split among 3 processes"):
        make("sudoku", "ddp", tmp_path)

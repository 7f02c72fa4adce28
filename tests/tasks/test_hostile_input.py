"""Whatever a file or a text holds, it is read or refused with a message: nothing else is raised."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.lm.shards import KIND, MANIFEST, VERSION, Manifest, ShardError, TokenStore
from tasks.maze.config import PRESETS as MAZES
from tasks.maze.files import read_mazes
from tasks.maze.task import MazeTask
from tasks.sudoku.config import PRESETS as SUDOKU
from tasks.sudoku.files import read_puzzles
from tasks.sudoku.task import SudokuTask

fuzzed = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEADS = ("", "source,question,answer,rating\n", "question,answer\n", "\ufeffquestion\n")
PIECES = ["1234341221434321", "1.3.34.221.343.1", "S # G", "#", "S", "G", " ", "o", ",", '"', "\n",
          "\r", "\0", "0", ".", "9", "a", "é", "½", "\u2028", "\ud800"]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=30).map("".join)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore:.*skipped:UserWarning")
@pytest.mark.filterwarnings("ignore:.*the values of `rating`:UserWarning")
@fuzzed
@given(head=st.sampled_from(HEADS), text=texts, skip_bad=st.booleans())
@pytest.mark.parametrize("reader", [read_puzzles, read_mazes])
def test_files_of_puzzles(
    reader: object, head: str, text: str, skip_bad: bool, tmp_path: Path
) -> None:
    path = tmp_path / "puzzles.csv"
    path.write_bytes((head + text).encode("utf-8", "surrogatepass"))
    refusal = ""
    try:
        reader(path, skip_bad=skip_bad)  # type: ignore[operator]
    except ValueError as error:
        refusal = str(error)
    assert not refusal or str(path) in refusal


@fuzzed
@given(text=texts)
def test_questions_of_the_service(text: str) -> None:
    for task, config in ((SudokuTask(), SUDOKU["tiny"]), (MazeTask(), MAZES["tiny"])):
        try:
            symbols = task.question(text, config)  # type: ignore[arg-type]
        except ValueError:
            continue
        assert len(symbols) == config.spec().num_cells
        assert task.question(task.line(symbols), config) == symbols  # type: ignore[arg-type]


@fuzzed
@given(header=json_values, metadata=json_values, tail=st.binary(max_size=40))
def test_files_that_claim_to_be_checkpoints(
    header: object, metadata: object, tail: bytes, tmp_path: Path
) -> None:
    """A well-formed frame around anything; so the parser of the header is passed, or nearly."""
    path = tmp_path / "checkpoint.safetensors"
    content = header if not isinstance(header, dict) else header | {"__metadata__": metadata}
    head = json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + tail)
    with pytest.raises(CheckpointError):
        Checkpoint.load(path)


@fuzzed
@given(
    values=st.dictionaries(
        st.sampled_from(
            ["kind", "version", "vocabulary", "tokenizer", "training", "held_out", "x"]
        ),
        json_values,
    ),
    shard=st.dictionaries(
        st.sampled_from(["name", "tokens", "documents", "index", "x"]), json_values
    ),
)
def test_files_that_claim_to_be_manifests_of_tokens(
    values: dict[str, object], shard: dict[str, object], tmp_path: Path
) -> None:
    one = {"name": "training-00000", "tokens": 1, "documents": 1, "index": "0"}
    whole = {"kind": KIND, "version": VERSION, "vocabulary": 257, "tokenizer": "0", "source": ""}
    whole |= {"training": [one | shard], "held_out": [one]}
    (tmp_path / MANIFEST).write_text(json.dumps(whole | values))
    refusal = ""
    try:
        TokenStore(tmp_path, Manifest.read(tmp_path).training, 257)
    except ShardError as error:
        refusal = str(error)
    assert str(tmp_path) in refusal
    assert refusal.isprintable()


@fuzzed
@given(meta=st.text(max_size=30) | json_values.map(json.dumps), form=st.sampled_from([1, 2]))
def test_meta_data_of_checkpoints(meta: str, form: int, tmp_path: Path) -> None:
    from tasks.checkpoints import file as checkpoint

    path = tmp_path / "checkpoint.safetensors"
    name = checkpoint.FORMAT if form == 2 else checkpoint.FIRST_FORMAT
    fields = {"format": name, "meta": meta, "sha256": checkpoint._checksum({}, meta)}
    head = json.dumps({"__metadata__": fields}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    try:
        loaded = Checkpoint.load(path)
    except CheckpointError:
        return
    assert isinstance(loaded.meta, dict)

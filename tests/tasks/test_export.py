"""Inference with a fixed budget: exported, loaded without the project's code, and compiled."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from parameters import long, slow
from torch import Tensor

from models import TokenLayout
from models.language import Injection, Mixer
from solvers import get_solver
from tasks.export import Inference, write_program
from tasks.lm.config import PRESETS as LANGUAGE
from tasks.lm.networks import ModelName as LanguageModelName
from tasks.maze.config import PRESETS as MAZES
from tasks.puzzles.config import ModelName
from tasks.sudoku.config import PRESETS as SUDOKU

STEPS = 12
PROGRAMS = [("sudoku", "anderson"), ("maze", "broyden"), ("lm", "picard")]
# Of each kind of part those that `make test-slow` exports; the others are tried before a release.
OFTEN = {"trm", "unrolled", "transformer", "image", "parcae", "deq", "scan", "llama"}
PRESETS: dict[str, Any] = {"sudoku": SUDOKU, "maze": MAZES, "lm": LANGUAGE}
# What a user has who got a file, and torch.
READER = """
import sys, torch
program = torch.export.load(sys.argv[1], extra_files=(about := {"about.json": ""})).module()
x = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save([program(rows) for rows in x], sys.argv[3])
assert not {"solvers", "implicit", "models", "tasks"} & set(sys.modules)
print(about["about.json"])
"""


@pytest.fixture(autouse=True)
def own_process() -> None:
    """A command writes one program: the compiler remembers the lengths that it met before."""
    torch.compiler.reset()


def built(name: str, rtol: float = 1e-2, solver: str = "picard") -> tuple[Any, Tensor]:
    """A model whose samples converge after various numbers of steps, and five inputs."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    if name == "lm":
        config: Any = LANGUAGE["tiny"].changed(width=32)
        x = torch.randint(0, 257, (5, 10), generator=generator)
    elif name == "maze":
        config = MAZES["tiny"].changed(width=16)
        x = torch.randint(0, 4, (5, config.data.side**2), generator=generator)
    else:
        kind = "reasoner" if name == "reasoner" else "attractor"
        config = SUDOKU["tiny"].changed(width=16, model=kind)
        x = torch.randint(0, 5, (5, 16), generator=generator)
    model = config.build().double().eval()
    model.solving.solver = get_solver(solver, rtol=rtol, atol=0.0)
    return model, x


def agree(found: dict[str, Tensor], model: Any, x: Tensor) -> Any:
    """Compare with the solve; returns its evidence."""
    with torch.no_grad():
        expected = model(x, max_steps=STEPS)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["converged"], expected.solution.converged)
    assert torch.equal(found["num_steps"], expected.solution.num_steps)
    torch.testing.assert_close(found["residual"], expected.solution.residual, rtol=1e-3, atol=1e-7)
    return expected.solution


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sudoku", "maze", "reasoner", "lm"])
@pytest.mark.parametrize("rtol", [3e-2, 1e-12])
def test_a_fixed_budget_gives_what_the_solve_gives(name: str, rtol: float) -> None:
    model, x = built(name, rtol)
    with torch.no_grad():
        found = Inference(model, STEPS)(x)
    evidence = agree(found, model, x)
    # Both are seen: a solve that ends early, and one that uses its budget.
    assert evidence.converged.any() if rtol > 1e-6 else not evidence.converged.all()


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        long(name, solver, unless=(name, solver) in PROGRAMS)
        for name in ("sudoku", "maze", "lm")
        for solver in ("picard", "anderson", "broyden")
    ],
)
def test_a_program_needs_no_code_of_ours(name: str, solver: str, tmp_path: Path) -> None:
    model, x = built(name, solver=solver)
    path = tmp_path / "model.pt2"
    longest = 64 if name == "lm" else None
    write_program(model, x[:2], STEPS, path, {"max_steps": STEPS}, longest)
    inputs = [x, x[:1]] + ([x[:, :7]] if name == "lm" else [])
    torch.save(inputs, tmp_path / "x.pt")
    files = [str(path), str(tmp_path / "x.pt"), str(tmp_path / "found.pt")]
    reader = [sys.executable, "-I", "-c", READER, *files]
    ended = subprocess.run(reader, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"max_steps": STEPS}
    for rows, found in zip(inputs, torch.load(tmp_path / "found.pt"), strict=True):
        agree(found, model, rows)


# A unit of torch gathers its weights anew, of which a program keeps the result.
@pytest.mark.filterwarnings("ignore:.*_flat_weights.* were assigned during export")
@pytest.mark.parametrize(
    ("task", "options"),
    [
        *(long("sudoku", {"model": name}, unless=name in OFTEN) for name in get_args(ModelName)),
        *(long("sudoku", {"layout": name}, unless=name in OFTEN) for name in get_args(TokenLayout)),
        *(long("maze", {"layout": name}) for name in ("image", "attention", "mixer")),
        long("maze", {"model": "transformer"}),
        slow("sudoku", {"model": "reasoner", "halting": "q-learning"}),
        *(
            long("lm", {"model": name}, unless=name in OFTEN)
            for name in get_args(LanguageModelName)
        ),
        *(long("lm", {"mixer": name}, unless=name in OFTEN) for name in get_args(Mixer)),
        *(long("lm", {"injection": name}) for name in get_args(Injection)),
    ],
)
def test_every_model_is_written_and_read_back(
    task: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config: Any = PRESETS[task]["tiny"].changed(width=16, **options)
    model = config.build().double().eval()
    steps = STEPS
    if model.solving is None:
        steps = None
    else:
        model.solving.solver = get_solver("picard", rtol=1e-2)
    entries = 16 if task == "lm" else config.spec().num_cells
    x = torch.randint(0, 4, (70, entries), generator=torch.Generator().manual_seed(1))
    varies = task == "lm" and config.spec().mixer not in ("scan", "gru")
    longest = config.data.context if varies else None
    write_program(model, x[:2], steps, tmp_path / "model.pt2", {}, longest)
    program = torch.export.load(tmp_path / "model.pt2").module()
    # More rows than those that a plain pass takes at once.
    for rows in (x[:1], x, x[:, :7] if varies else x[:3]):
        with torch.no_grad():
            found = program(rows)
            expected = model(rows) if steps is None else model(rows, max_steps=steps)
        assert found["logits"].shape == expected.logits.shape
        sure: Any = slice(None)
        if task == "lm" and steps is not None:
            # Of tokens that have not converged, a solve returns its best point, a program its last.
            sure = found["converged"]
            assert torch.equal(sure, expected.solution.converged)
        if config.model.name != "eqr":  # which starts anywhere
            torch.testing.assert_close(
                found["logits"][sure], expected.logits[sure], rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", ["sudoku", "lm"])
def test_a_fixed_budget_can_be_compiled_as_a_whole(name: str) -> None:
    model, x = built(name)
    compiled = torch.compile(Inference(model, STEPS), fullgraph=True)
    with torch.no_grad():
        agree(compiled(x), model, x)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_program_becomes_a_library_without_python(tmp_path: Path) -> None:
    """AOTInductor compiles the file, loop included, for batches of any size."""
    model, x = built("sudoku", solver="anderson")
    write_program(model, x[:2], STEPS, tmp_path / "model.pt2", {})
    program = torch.export.load(tmp_path / "model.pt2")
    path = str(tmp_path / "library.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    run = torch._inductor.aoti_load_package(path)
    for rows in (x, x[:1], x[:3]):
        agree(run(rows), model, rows)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model, x = built("sudoku")
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        Inference(model, 0)
    with pytest.raises(ValueError, match=r"ends in `\.pt2`: got"):
        write_program(model, x, STEPS, tmp_path / "model.onnx", {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"x\.pt2` cannot be written \(Not a directory\)"):
        write_program(model, x, STEPS, tmp_path / "file" / "x.pt2", {})
    model.solving.solver = get_solver("newton_krylov")
    with pytest.raises(ValueError, match=r"NewtonKrylov.* cannot be exported.* anderson`"):
        Inference(model, STEPS)


def test_a_model_without_a_solve_has_logits_alone() -> None:
    model = SUDOKU["tiny"].changed(width=16, model="transformer").build().eval()
    x = torch.zeros(2, 16, dtype=torch.int64)
    with torch.no_grad():
        found = Inference(model, None)(x)
        assert found.keys() == {"logits"}
        assert torch.equal(found["logits"], model(x).logits)

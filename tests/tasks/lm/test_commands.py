"""The command line of the language task from end to end."""

import json
import re
from pathlib import Path

import pytest
import torch

from tasks.lm.__main__ import main
from tasks.lm.config import PRESETS, LanguageConfig

TINY = ["--preset", "tiny", "--width", "32", "--num-heads", "2", "--max-bytes", "200000",
        "--eval-tokens", "1024", "--eval-max-steps", "16"]  # fmt: skip
WITHOUT_A_SOLVE = TINY[: TINY.index("--eval-max-steps")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to a temporary folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trained run, shared by the tests that only use it."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert main(["train", *TINY, "--steps", "100", "--out", str(folder)]) == 0
    return folder


def test_training_learns_and_leaves_everything(run: Path) -> None:
    text = (run / "result.json").read_text()
    assert "NaN" not in text
    result = json.loads(text)
    assert result["train_steps"] == 100
    # A byte that is drawn at random costs 8 bits; letters by their frequency, about 5.
    assert result["eval"]["bits_per_byte"] < 4.5
    assert result["eval"]["median_residual"] < 1e-2
    assert [row["max_steps"] for row in result["eval"]["by_budget"]] == [0, 1, 2, 4, 8, 16]
    for name in ("learning.png", "budgets.png", "log.jsonl", "model.safetensors"):
        assert (run / name).stat().st_size > 0, name


def test_eval_repeats_the_figures_of_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoint.safetensors", "model.safetensors"):
        assert main(["eval", "--checkpoint", str(run / name)]) == 0
        again = json.loads(capsys.readouterr().out.splitlines()[-1])["eval"]
        before = json.loads((run / "result.json").read_text())["eval"]
        assert again["loss"] == before["loss"]


@pytest.mark.parametrize(
    ("option", "value", "least"), [("--tokens", "0", 1), ("--max-steps", "-1", 0)]
)
def test_nothing_is_written_without_tokens_or_steps(
    option: str, value: str, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", option, value, "def f("]) == 2
    assert f"`{option}` must be at least {least}, got {value}" in capsys.readouterr().err


def test_generate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = ["--checkpoint", str(run / "checkpoint.safetensors"), "--tokens", "12"]
    assert main(["generate", "def f(", *checkpoint]) == 0
    one = capsys.readouterr().out
    assert one.startswith("def f(")
    assert len(one) > len("def f(") + 4
    assert main(["generate", "def", "class Longer:", *checkpoint, "--temperature", "0"]) == 0
    assert "class Longer:" in capsys.readouterr().out


def test_internalise(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = ["--checkpoint", str(run / "checkpoint.safetensors")]
    draw = ["--draw", str(tmp_path / "pictures")]
    exported = tmp_path / "cheap.safetensors"
    options = ["--limit", "512", "--export", str(exported)]
    assert main(["internalise", *checkpoint, *draw, *options]) == 0
    out, err = capsys.readouterr()
    assert "of the refiner's work" in err
    found = json.loads(out)["internalise"]
    assert found["spectral_radius"] > 0
    assert 0 < found["converged"]["distance"] < 10
    for name in ("budgets", "training", "trajectory"):
        assert (tmp_path / "pictures" / f"{name}.png").stat().st_size > 0
    assert main(["eval", "--checkpoint", str(exported), "--limit", "512"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    budget = found["advice"]["max_steps"]
    assert result["config"]["solve"]["eval_max_steps"] == budget
    by_budget = {row["max_steps"]: row["loss"] for row in found["by_budget"]}
    assert result["eval"]["loss"] == pytest.approx(by_budget[budget], rel=1e-6)


def test_export_and_back(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("tasks.lm.hub")
    checkpoint = run / "model.safetensors"
    assert main(["export", str(tmp_path / "hub"), "--checkpoint", str(checkpoint)]) == 0
    model = hub.PretrainedLM.from_pretrained(tmp_path / "hub").eval()
    direct = hub.PretrainedLM.of_checkpoint(checkpoint)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, direct(ids).logits)
    assert model.write("def f(", tokens=5) == direct.write("def f(", tokens=5)


@pytest.mark.parametrize("model", ["transformer", "parcae", "deq"])
def test_every_baseline_trains_and_is_evaluated(model: str) -> None:
    flags = TINY if model == "deq" else WITHOUT_A_SOLVE
    arguments = ["train", *flags, "--steps", "3", "--model", model, "--out", model]
    assert main(arguments) == 0
    assert main(["eval", "--checkpoint", f"{model}/checkpoint.safetensors"]) == 0


def test_compare_repeats_nothing_and_matches_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"width": 16, "num_heads": 2, "max_bytes": 100_000, "eval_tokens": 256}
    monkeypatch.setitem(PRESETS, "tiny", PRESETS["tiny"].changed(**small))
    arguments = ["compare", "--preset", "tiny", "--models", "attractor", "transformer"]
    arguments += ["--ablations", "start=zeros", "--backbone-blocks", "2"]
    arguments += ["--rates", "1e-3", "8e-3", "--seeds", "2", "--steps", "3", "--out", "runs"]
    assert main(arguments) == 0
    table = json.loads(Path("runs/table.json").read_text())
    assert table["rates"] == [1e-3, 8e-3]
    assert table["commit"] is None or re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", table["commit"])
    rows = table["rows"]
    for row in rows:  # each holds the options of its run, with the rate that was chosen
        config = LanguageConfig.from_json(row["config"])
        assert (config.train.learning_rate, config.train.steps) == (row["rate"], 3)
        assert row["model"].startswith(config.model.name)
        assert set(map(float, row["search"])) == {1e-3, 8e-3}
    bits = [row["bits_per_byte"] for row in rows]
    assert bits == sorted(bits)
    assert [sum(row["by_seed"]) / 2 for row in rows] == pytest.approx(bits)
    parameters = {row["model"]: row["parameters"] for row in rows}
    assert set(parameters) == {"attractor", "transformer", "attractor-start=zeros"}
    assert parameters["transformer"] == pytest.approx(parameters["attractor"], rel=0.05)
    config = json.loads(next(Path("runs").glob("*zeros*/compare.json")).read_text())["config"]
    shape = config["model"]
    assert (shape["start"], shape["name"], shape["backbone_blocks"]) == ("zeros", "attractor", 2)
    runs = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/compare.json")}
    assert len(runs) == 9
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in Path("runs").glob("*/compare.json")} == runs
    assert "tiny, 3steps each" in capsys.readouterr().out


def test_a_baseline_has_no_solver_to_study(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *WITHOUT_A_SOLVE, "--steps", "2", "--model", "transformer", "--out", "t"]
    assert main(arguments) == 0
    assert main(["internalise", "--checkpoint", "t/checkpoint.safetensors"]) == 2
    assert "has no solver" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["frobnicate"], "Unknown command"),
    (["--preset", "tyny"], "tiny"),
    (["--text", "nowhere"], "There is no text at"),
    (["eval", "--lambada", "x.jsonl"], "no file of passages at x.jsonl, which `--lambada` names."),
    (["eval", "--lambada", "."], "gpt-2/data/lambada_test.jsonl to there, or name another."),
    (["--vocabulary", "100"], "at least 257"),
    (["eval", "--max-steps", "-1"], "at least 0"),
    (["compare", "--ablations", "depth=3"], "Unknown option 'depth'"),
    (["compare", "--ablations", "injection=none"], "must be one of"),
    (["compare", "--ablations", "backward=backprop"], "Unknown backward"),
    (["compare", "--ablations", "model=lstm"], "Unknown model 'lstm'"),
    (["compare", "--ablations", "model=parcae,loops=few"], "takes one int"),
    (["compare", "--ablations", "tied=no"], "must be one of 'true', 'false'"),
    (["compare", "--ablations", "seed=3"], "one of the options"),
    (["compare", "--ablations", "train_rtol=loose"], "`train_rtol` takes one float"),
    (["compare", "--ablations", "train_rtol=2"], "`train_rtol` must be at least `rtol`"),
    (["--model", "parcae", "--coda-blocks", "-1"], "0 or more"),
    (["eval", "--checkpoint", "smal"], "These come with the package: small. Did you mean 'small'?"),
])  # fmt: skip
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # how the flag parser refuses a value
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_program_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--checkpoint", str(run / "model.safetensors")]
    assert main(["export", "lm.pt2", *source, "--solver", "anderson", "--max-steps", "4"]) == 0
    program = torch.export.load("lm.pt2").module()
    assert program(torch.zeros(3, 9, dtype=torch.int64))["logits"].shape[:2] == (3, 9)
    assert main(["export", "lm.pt2", *source, "--solver", "newton_krylov"]) == 2
    assert "cannot be exported" in capsys.readouterr().err
    assert main(["export", "folder", *source, "--max-steps", "4"]) == 2
    assert "A folder has no budget" in capsys.readouterr().err

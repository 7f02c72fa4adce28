"""Each example runs on a small budget, keeps to its length, and finds what it says."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
NEEDS = {"digits_classifier": "sklearn", "transformer_equilibrium": "transformers"}


def load(name: str) -> ModuleType:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="needs pip install '.[examples]'")
    return importlib.import_module(f"examples.{name}")


def test_there_are_five() -> None:
    assert len(NAMES) == 5


@pytest.mark.parametrize("name", NAMES)
def test_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 120


def test_digits_classifier(tmp_path: Path) -> None:
    numbers = load("digits_classifier").main(epochs=4, out=tmp_path / "new" / "picture.png")
    assert numbers["accuracy"] > 0.9
    assert numbers["converged"] == 1
    assert (tmp_path / "new" / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_graph_network(tmp_path: Path) -> None:
    numbers = load("graph_network").main(steps=150, out=tmp_path / "picture.png")
    assert numbers["implicit"] > numbers["explicit, 2 layers"] + 0.05
    assert (tmp_path / "picture.png").exists()


def test_stiff_ode(tmp_path: Path) -> None:
    numbers = load("stiff_ode").main(steps=2, num_times=12, out=tmp_path / "picture.png")
    assert numbers["gradient_error"] < 1e-6
    assert numbers["distance_to_radau"] < 0.1
    assert (tmp_path / "picture.png").exists()


def test_bilevel_ridge(tmp_path: Path) -> None:
    numbers = load("bilevel_ridge").main(steps=20, out=tmp_path / "picture.png")
    assert numbers["worst_gradient_error"] < 1e-4
    assert numbers["validation_loss"] < numbers["validation_loss_single"]
    assert (tmp_path / "picture.png").exists()


def test_transformer_equilibrium(tmp_path: Path) -> None:
    numbers = load("transformer_equilibrium").main(steps=20, out=tmp_path / "picture.png")
    assert numbers["held_out_loss"] < 4.5  # log(256) = 5.5
    assert numbers["converged"] == 1
    assert (tmp_path / "picture.png").exists()

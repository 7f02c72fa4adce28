"""One update of TRM, HRM, EqR and the puzzle Attractor as their public code computes it.

And one training step of HRM, whose loss needs a second pass.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import published
import pytest
import torch
from torch import Tensor

from models import Reasoner
from tasks.puzzles.published_weights import converted, expected_shapes, published_name
from tasks.training.micro_batches import continue_target, forward

CASES = list(published.RECORDED)
# Applications of our update to which the recorded one amounts: the H-cycles.
CYCLES = {"trm": 3, "hrm": 2, "eqr": 3, "reasoner": 1}
# The rounding of some hundred products and sums.
CLOSE: dict[str, Any] = {"rel": 1e-12, "abs": 1e-12}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """Also what is computed in the default dtype, such as the angles of rotary positions."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(case: str) -> Reasoner:
    model: Any = published.config(case).build()
    model.load_state_dict(converted(published.weights(case), published.config(case), 1))
    return model.train()


def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let EqR draw what was drawn when it was recorded."""
    calls = [0]

    def drawn(like: Tensor) -> Tensor:
        calls[0] += 1
        return published.formula(like.shape, 100 + calls[0], math.sqrt(2))

    monkeypatch.setattr(torch, "randn_like", drawn)


def gradients(model: Reasoner) -> dict[str, float]:
    """Their norms, by the names of the public code."""
    return {
        published_name(name): parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name != "start"
    }


@pytest.mark.parametrize("case", CASES)
def test_weights_have_the_published_names_and_shapes(case: str) -> None:
    shapes = {name: tuple(shape) for name, shape in published.RECORDED[case]["shapes"].items()}
    assert expected_shapes(published.config(case), 1) == shapes


@pytest.mark.parametrize("case", CASES)
def test_an_update_and_its_gradients_are_those_published(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, model, name = published.RECORDED[case], network(case), case.partition("-")[0]
    state, (x,) = model.problem(published.questions())
    if name == "eqr":
        noise(monkeypatch)
        y, z = (published.formula(x.shape, 50 + i, math.sqrt(2)) for i in range(2))
        state = y, z
    update = model.solving.module
    with torch.no_grad():
        for _ in range(CYCLES[name] - 1):
            state = update(state, x)
    state = update(state, x)
    logits, halt = model.read(state), model._halting(state[0])[0]
    found = {"y": state[0], "z": state[1], "logits": logits}
    for what, values in found.items():
        assert published.summary(values) == pytest.approx(recorded[what], **CLOSE), what
    assert halt.tolist() == pytest.approx(recorded["halt"], **CLOSE)
    loss = (logits * published.formula(logits.shape, 60, 1.0)).sum() + halt.sum()
    loss.backward()
    assert gradients(model) == pytest.approx(recorded["gradients"], **CLOSE)


@pytest.mark.parametrize("recorded", published.RECORDED["hrm"]["training_steps"])
def test_a_training_step_of_hrm_learns_when_to_go_on_as_published(
    recorded: dict[str, Any],
) -> None:
    config, model, x = published.config("hrm"), network("hrm"), published.questions()
    train = config.changed(loss="stablemax", segments=16, refill=True).train
    last = torch.tensor(recorded["segments"]) + 1 >= train.segments
    given: dict[str, Any] = {"max_steps": config.train_steps, "start": published.segment_start(82)}
    out = model(x, **given)
    assert out.halt is not None
    assert out.q_continue is not None
    assert out.q_next is not None
    assert out.halt.tolist() == pytest.approx(recorded["q_halt"], **CLOSE)
    assert out.q_continue.tolist() == pytest.approx(recorded["q_continue"], **CLOSE)
    assert continue_target(out.q_next, last).tolist() == pytest.approx(recorded["target"], **CLOSE)
    loss, outcome, _ = forward(model, x, published.answers(out.logits), train, last=last, **given)
    assert loss.item() == pytest.approx(recorded["loss"], **CLOSE)
    assert outcome.halted is not None
    assert (outcome.halted | last).tolist() == recorded["halted"]
    loss.backward()
    assert gradients(model) == pytest.approx(recorded["gradients"], **CLOSE)


@pytest.mark.parametrize(
    ("case", "training"),
    [
        (case, training)
        for case, training in itertools.product(CASES, (False, True))
        # EqR draws noise in a solve's every call, and the Attractor's preset solves.
        if not case.startswith("eqr") and not (training and case == "reasoner")
    ],
)
def test_a_pass_makes_as_many_updates_as_a_published_segment(case: str, training: bool) -> None:
    recorded, model, name = published.RECORDED[case], network(case), case.partition("-")[0]
    solve, steps = published.config(case).solve, CYCLES[name]
    assert name == "reasoner" or solve.train_steps + 1 == steps
    with torch.set_grad_enabled(training):
        out = model(published.questions(), max_steps=steps - training)
    assert published.summary(out.logits) == pytest.approx(recorded["logits"], **CLOSE)
    assert published.summary(out.state[1]) == pytest.approx(recorded["z"], **CLOSE)
    assert out.halt is not None
    assert out.halt.tolist() == pytest.approx(recorded["halt"], **CLOSE)


@pytest.mark.parametrize("case", ["trm", "trm-mixer", "hrm"])
def test_a_solve_makes_all_updates_and_ends_in_the_last_one(case: str) -> None:
    """Although the residual does not fall at each of them, as it seldom does in training."""
    model, x = network(case), published.questions()
    state, (embedded,) = model.problem(x)
    residuals = []
    with torch.no_grad():
        for parameter in model.solving.module.parameters():
            parameter *= 4
        for _ in range(12):
            new = model.solving.module(state, embedded)
            residuals.append((new[0] - state[0]).norm().item())
            state = new
        model.solving.solver = published.config(case).solve.evaluation_solver()
        out = model.eval()(x, max_steps=12)
    assert residuals != sorted(residuals, reverse=True)
    torch.testing.assert_close(out.state, state)

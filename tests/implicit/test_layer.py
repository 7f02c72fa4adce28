"""The layer, and memory that does not grow with the number of steps."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from memory import peak_of
from parameters import slow
from torch import Tensor, nn

import implicit
import solvers
from implicit import FixedPointLayer, Phantom, SolveError, fixed_point
from implicit.testing import pairs


class Pull(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.inner(y) + x)


def test_unconverged_is_reported_not_raised() -> None:
    layer = FixedPointLayer(Pull(), solver="picard", max_steps=1)
    s = layer(torch.zeros(3, 4), torch.randn(3, 4))
    assert not s.converged.any()
    assert int(layer(torch.zeros(3, 4), torch.randn(3, 4), max_steps=3).num_steps.max()) == 3


def test_layer_may_raise_and_a_call_may_have_its_own_budget() -> None:
    x = torch.randn(3, 4)
    layer = FixedPointLayer(Pull(), solver="picard", max_steps=2, throw=True)
    with pytest.raises(SolveError, match="did not converge in 2 steps"):
        layer(torch.zeros(3, 4), x)
    assert layer(torch.zeros(3, 4), x, max_steps=100).converged.all()
    assert layer.max_steps == 2
    start = torch.randn(3, 4)
    layer = FixedPointLayer(Pull())
    assert torch.equal(layer(start, x, max_steps=0).value, start)


@pytest.mark.parametrize(
    ("solver", "mode"),
    [
        slow(solver, mode, unless=mode == "exact" or solver == "anderson")
        for solver, mode in pairs()
    ],
)
def test_training_reduces_the_loss(mode: str, solver: str) -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(Pull(), solver=solver, backward=mode)
    x, target = torch.randn(8, 4), 0.3 * torch.randn(8, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(torch.zeros(8, 4), x).value - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_bfloat16_autocast_keeps_state_and_gradients_in_float32(mode: str) -> None:
    """Backward runs outside the autocast block, as PyTorch recommends; warnings are errors."""
    torch.manual_seed(0)
    loose = solvers.Anderson(rtol=2e-2)
    backward = implicit.Exact(solver=loose) if mode == "exact" else mode
    layer, x = FixedPointLayer(Pull(), solver=loose, backward=backward), torch.randn(3, 4)
    s = layer(torch.zeros(3, 4), x)
    true = torch.autograd.grad(s.value.sum(), list(layer.parameters()))
    seen = []
    hook = layer.module.inner.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = layer(torch.zeros(3, 4), x)
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert s.value.dtype == s.residual.dtype == torch.float32
    assert s.converged.all()
    found = torch.autograd.grad(s.value.sum(), list(layer.parameters()))
    assert {gradient.dtype for gradient in found} == {torch.float32}
    assert all(torch.allclose(a, b, rtol=0.1, atol=0.05) for a, b in zip(found, true, strict=True))


def test_layer_can_be_copied_pickled_and_called_with_other_parameters() -> None:
    layer, x = FixedPointLayer(Pull(), backward=Phantom(steps=3)), torch.randn(3, 4)
    zero = torch.zeros(3, 4)
    true = layer(zero, x).value
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(zero, x).value, true)
        assert twin.backward_mode == Phantom(steps=3)
    other = {k: (0.5 * v).detach().requires_grad_() for k, v in layer.named_parameters()}
    torch.func.functional_call(layer, other, (zero, x)).value.sum().backward()
    assert all(tensor.grad is not None for tensor in other.values())
    assert all(tensor.grad is None for tensor in layer.parameters())


def test_state_dict_holds_the_module_only() -> None:
    assert set(FixedPointLayer(Pull()).state_dict()) == {"module.inner.weight", "module.inner.bias"}


def test_print_tells_solver_mode_and_budget() -> None:
    text = repr(FixedPointLayer(Pull(), solver="picard", backward=Phantom(steps=3), max_steps=7))
    assert "Picard(" in text
    assert "Phantom(steps=3" in text
    assert "max_steps=7" in text


def test_unknown_names_raise_at_construction() -> None:
    with pytest.raises(ValueError, match="Did you mean 'broyden'"):
        FixedPointLayer(Pull(), solver="broiden")
    with pytest.raises(ValueError, match="Did you mean 'phantom'"):
        FixedPointLayer(Pull(), backward="fantom")


def test_eval_mode_detaches_nothing() -> None:
    """torchdeq's `eval()` silently detaches the output."""
    layer = FixedPointLayer(Pull()).eval()
    assert layer(torch.zeros(3, 4), torch.randn(3, 4)).value.requires_grad


@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_no_grad_and_inference_mode_record_nothing(mode: str) -> None:
    layer, x = FixedPointLayer(Pull(), backward=mode), torch.randn(3, 4)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            s = layer(torch.zeros(3, 4), x)
        assert not s.value.requires_grad
        assert s.adjoints == []
        assert torch.allclose(s.value, layer(torch.zeros(3, 4), x).value, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "mode"),
    [slow(*pair, unless=pair[0] in ("anderson", "picard")) for pair in pairs()],
)
def test_saved_tensors_grow_with_steps_in_unrolled_mode_only(mode: str, solver: str) -> None:
    torch.manual_seed(0)
    layer, x = Pull(), torch.randn(3, 4)

    class Saved:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor

    def saved(max_steps: int) -> tuple[int, int]:
        """Tensors that the graph of the solution holds, and their entries."""
        held: weakref.WeakSet[Saved] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Saved:
            kept = Saved(tensor.detach())  # else an output would keep its own graph alive
            held.add(kept)
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            endless = solvers.get_solver(solver, rtol=0.0, atol=0.0)
            s = fixed_point(
                layer, torch.zeros(3, 4), x, solver=endless, backward=mode, max_steps=max_steps,
                throw=False,
            )  # fmt: skip
        gc.collect()
        assert s.value.requires_grad
        return len(held), sum(kept.tensor.numel() for kept in held)

    if mode == "unrolled":
        assert all(many > 2 * few for many, few in zip(saved(4), saved(1), strict=True))
    else:
        assert saved(64) == saved(4)


@pytest.mark.filterwarnings("ignore:The gradient is approximate")
@pytest.mark.parametrize("mode", implicit.backward_modes())
def test_peak_memory_of_a_training_step_is_flat_except_unrolled(mode: str) -> None:
    """States are wide, since the status of a solve costs memory per sample, not per entry."""
    turn = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0)))[0]
    weight = (0.97 * turn).requires_grad_()
    x = 0.1 * torch.randn(256, 128, generator=torch.Generator().manual_seed(1))

    # `shine` needs an estimate of the inverse, of which Picard has none.
    kind = "anderson" if mode == "shine" else "picard"
    forward = solvers.get_solver(kind, rtol=0.0, atol=0.0)

    def step(max_steps: int) -> None:
        s = fixed_point(
            lambda y, x: torch.tanh(y @ weight + x), torch.zeros_like(x), x,
            solver=forward, backward=mode, max_steps=max_steps, throw=False,
        )  # fmt: skip
        torch.autograd.grad(s.value.square().sum(), weight)

    few, many = (peak_of(lambda n=n: step(n)) for n in (4, 64))
    assert (many > 3 * few) if mode == "unrolled" else (many <= 1.02 * few)

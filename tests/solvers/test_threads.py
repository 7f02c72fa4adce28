"""One map in several threads: every solve equals that of a single thread, bit for bit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import solvers
from solvers.derivatives import Affine, Linearisation

NATIVE = [name for name in solvers.names() if "." not in name]
THREADS, TASKS = 8, 24


@pytest.mark.parametrize("name", NATIVE)
def test_threads_do_not_affect_each_other(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.2 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(TASKS, 3, 6, generator=generator, dtype=torch.float64)

    def f(y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(y @ weight) + x

    def solve(x: Tensor) -> Tensor:
        return solvers.solve(f, torch.zeros_like(x), x, solver=name, max_steps=200).value

    alone = [solve(part) for part in x]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(solve, x))
    assert all(map(torch.equal, alone, together))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, y: Tensor) -> Tensor:
        return self.norm(y).tanh()


class Attending(nn.Module):
    """Self-attention, by torch's function or by its module."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if module else None

    def forward(self, y: Tensor) -> Tensor:
        tokens = y.view(len(y), 2, 8)
        if self.attention is not None:
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


class Square(torch.autograd.Function):
    """A function with forward mode but without a second derivative."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.square() / 4

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, v: Tensor) -> Tensor:
        return v * ctx.saved_tensors[0] / 2  # type: ignore[attr-defined]

    @staticmethod
    def jvp(ctx: torch.autograd.function.FunctionCtx, t: Tensor) -> Tensor:
        return t * ctx.saved_tensors[0] / 2  # type: ignore[attr-defined]


def causal(y: Tensor) -> Tensor:
    tokens, mask = y.view(len(y), 4, 4), torch.ones(4, 4, dtype=torch.bool).tril()
    attend = nn.functional.scaled_dot_product_attention
    return attend(tokens, tokens, tokens, attn_mask=mask).flatten(1)


MAPS = {
    "grouped": (Grouped().double(), 8),
    "attention": (Attending(module=False).double(), 16),
    "attention module": (Attending(module=True).double(), 16),
    "attention with a mask": (causal, 16),
    "once": (Square.apply, 4),
    "constant": (torch.ones_like, 4),
    "itself": (lambda y: y, 4),
    "hidden from autograd": (torch.no_grad()(lambda y: y.sin()), 4),
}


@pytest.mark.parametrize("kind", MAPS)
def test_products_agree_with_differences_in_any_thread(kind: str) -> None:
    f, size = MAPS[kind]
    y, v = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected = (f(y + 1e-5 * v) - f(y - 1e-5 * v)) / 2e-5

    def product(_: int) -> Tensor:
        with torch.no_grad():
            return Linearisation(f, y).jvp(v)

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(product, range(TASKS)):
            assert torch.allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("kind", ["grouped", "attention", "attention module"])
def test_transposed_products_are_adjoint(kind: str) -> None:
    f, size = MAPS[kind]
    y, u, v = torch.randn(
        3, 3, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    jacobian = Linearisation(f, y)
    vjp = jacobian.vjp(u)
    assert vjp is not None
    assert torch.allclose((vjp * v).sum(), (u * jacobian.jvp(v)).sum())


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_products_of_an_affine_map_are_its_differences(size: float) -> None:
    """At any scale of the constant and of each sample's direction, and for zeros of either."""
    matrix, v, b = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    scale = torch.tensor([[0.0], [1.0], [1e-9], [1e9]], dtype=torch.float64) / size
    b[1] = 0
    found = Affine(lambda y: size * b + y @ matrix, size * b).jvp(scale * v)
    assert torch.allclose(found, scale * (v @ matrix), rtol=1e-10, atol=0)


def test_inference_mode_has_products_too() -> None:
    with torch.inference_mode():
        s = solvers.solve(torch.cos, torch.zeros(2, 3), solver="newton_krylov")
    assert s.converged.all()

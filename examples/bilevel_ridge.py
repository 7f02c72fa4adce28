"""Hyperparameters by their own gradient: one ridge penalty per feature, learned on validation data.

The inner problem, ridge regression, is solved by a fixed point of gradient descent,

    w = w - s * (A^T (A w - b) / n + exp(p) * w),

and the outer problem, min_p |A_val w(p) - b_val|^2, needs dw/dp, which `backward="exact"` takes
from the equation instead of the iterations. Only 6 of 30 features matter; a penalty that is the
same for all cannot know which. Source: F. Pedregosa, Hyperparameter optimization with approximate
gradient, ICML 2016.

    python -m examples.bilevel_ridge

Prints validation and test losses against the best single penalty, found on a fine grid, and the
error of the gradient against the closed form of ridge regression; draws the losses and penalties.
"""

from pathlib import Path

import torch
import tyro
from torch import Tensor

import solvers
from implicit import fixed_point
from implicit.diagnostics.style import BLUE, ORANGE, house_style, panels, save_figure

NUM_FEATURES, NUM_RELEVANT, NOISE = 30, 6, 1.0
TIGHT = solvers.Anderson(rtol=1e-9, atol=1e-12)


def draw_data(count: int, w: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features and noisy targets."""
    a = torch.randn(count, NUM_FEATURES, dtype=torch.float64, generator=generator)
    noise = torch.randn(count, dtype=torch.float64, generator=generator)
    return a, a @ w + NOISE * noise


def loss(w: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error."""
    a, b = data
    return (a @ w - b).square().mean()


def implicit_ridge(p: Tensor, data: tuple[Tensor, Tensor], w0: Tensor) -> solvers.Solution:
    """The ridge solution for log penalties `p`, differentiable in them, started at `w0`."""
    a, b = data
    hessian, moment = a.T @ a / len(b), a.T @ b / len(b)
    largest = torch.linalg.eigvalsh(hessian.detach())[-1] + p.detach().exp().max()

    def descend(w: Tensor) -> Tensor:
        return w - (hessian @ w - moment + p.exp() * w) / largest

    return fixed_point(descend, w0, solver=TIGHT, batch_dims=0, max_steps=500)


def closed_ridge(p: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """The same by linear algebra, to check against."""
    a, b = data
    return torch.linalg.solve(a.T @ a / len(b) + p.exp().diag(), a.T @ b / len(b))


def main(steps: int = 150, out: Path = Path("results/examples/bilevel_ridge.png")) -> dict:
    """Learn the penalties and draw."""
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(NUM_FEATURES, dtype=torch.float64)
    truth[:NUM_RELEVANT] = 1.0
    train, validation, test = (draw_data(count, truth, g) for count in (40, 100, 2000))
    p = torch.zeros(NUM_FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=0.1)
    w, evals, path, gradient_error = torch.zeros_like(truth), [], [], 0.0
    for _ in range(steps):
        s = implicit_ridge(p, train, w0=w.detach())
        w = s.value
        objective = loss(w, validation)
        optimizer.zero_grad()
        objective.backward()
        (true,) = torch.autograd.grad(loss(closed_ridge(p, train), validation), p)
        error = (torch.linalg.vector_norm(p.grad - true) / torch.linalg.vector_norm(true)).item()
        gradient_error = max(gradient_error, error)
        path.append(objective.item())
        evals.append(s.num_evals + sum(adjoint.num_evals for adjoint in s.adjoints))
        optimizer.step()
    grid = torch.linspace(-5, 3, 200, dtype=torch.float64)
    single = [loss(closed_ridge(q.expand_as(p), train), validation).item() for q in grid]
    best = grid[torch.tensor(single).argmin()].expand_as(p)
    draw(grid, single, path, p.detach(), out)
    return {
        "validation_loss": path[-1],
        "validation_loss_single": min(single),
        "test_loss": loss(closed_ridge(p.detach(), train), test).item(),
        "test_loss_single": loss(closed_ridge(best, train), test).item(),
        "worst_gradient_error": gradient_error,
        "mean_evaluations": sum(evals) / len(evals),
    }


@house_style()
def draw(grid: Tensor, single: list[float], path: list[float], p: Tensor, out: Path) -> None:
    """Validation loss along the way, and the penalties in the end."""
    figure, (left, right) = panels(2)
    left.plot(path, label="a penalty per feature, learned")
    left.axhline(min(single), color="C1", ls="--", label="best single penalty")
    left.axhline(NOISE**2, color="0.5", ls=":", label="noise of the data")
    left.set(xlabel="outer step", ylabel="validation loss", title="(a) The outer problem")
    left.legend()
    right.bar(
        range(len(p)), p.tolist(), color=[BLUE] * NUM_RELEVANT + [ORANGE] * (len(p) - NUM_RELEVANT)
    )
    right.set(xlabel="feature (blue: matters; orange: does not)", ylabel="log penalty")
    right.set_title("(b) The penalties in the end")
    save_figure(figure, out)


if __name__ == "__main__":
    for key, value in tyro.cli(main).items():
        print(f"{key}: {value:.4g}")

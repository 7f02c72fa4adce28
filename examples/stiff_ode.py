"""An implicit Euler step for a stiff equation, differentiated through its parameters.

Robertson's kinetics, y' = r(y; k), has rates k from 0.04 to 3e7. Each implicit Euler step solves

    y = y + (y_old + h * r(y; k) - y) / (1 + h * losses)

with `newton_krylov`, where plain iteration would need steps 10^7 times shorter. The division, by
the rate at which a species disappears, moves no solution and brings its residual to order one. The
gradient in k comes from the implicit function theorem at every step. Source: H. H. Robertson, 1966;
E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, sec. IV.1 and IV.8.

    python -m examples.stiff_ode

Prints the distance to SciPy's Radau solver, the gradient's error against central differences, and
the recovered rates; draws the trajectory and the recovery.
"""

from pathlib import Path

import numpy as np
import torch
import tyro
from scipy.integrate import solve_ivp
from torch import Tensor

import solvers
from implicit import fixed_point
from implicit.diagnostics.style import house_style, panels, save_figure

OUT = Path("results/examples/stiff_ode.png")
RATES = (0.04, 3e7, 1e4)
# The second species stays near 1e-5: the unknowns are scaled to be of order one.
SCALE = torch.tensor([1.0, 1e-5, 1.0], dtype=torch.float64)
NEWTON = solvers.NewtonKrylov(rtol=1e-10, atol=1e-12, forcing=1e-3)


def reaction(y: Tensor, k: Tensor) -> Tensor:
    """r(y; k) of concentrations `y`; shape (..., 3)."""
    a, b, c = y.unbind(-1)
    slow, fast, back = k[0] * a, k[1] * b * b, k[2] * b * c
    return torch.stack([back - slow, slow - back - fast, fast], -1)


def trajectory(log_k: Tensor, times: Tensor) -> tuple[Tensor, int]:
    """States at `times`, shape (times, 3), and the evaluations of `r` that they took."""
    k, evals = log_k.exp(), 0
    y = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    states = [y]
    for h in times.diff():
        losses = torch.stack([k[0], 2 * k[1] * y[0, 1] + k[2] * y[0, 2], 0 * h]).detach()

        def step(z: Tensor, old: Tensor, h: Tensor = h, losses: Tensor = losses) -> Tensor:
            return z + ((old + h * reaction(z * SCALE, k)) / SCALE - z) / (1 + h * losses)

        s = fixed_point(step, y.detach() / SCALE, y, solver=NEWTON, max_steps=100)
        y, evals = s.value * SCALE, evals + s.num_evals
        states.append(y)
    return torch.cat(states), evals


def main(steps: int = 20, num_times: int = 60, out: Path = OUT) -> dict:
    """Check the solution and the gradient, then recover the rates."""
    times = torch.cat([torch.zeros(1), torch.logspace(-5, 4, num_times)]).double()
    true = torch.tensor(RATES, dtype=torch.float64).log()
    with torch.no_grad():
        target, evals = trajectory(true, times)
    r = lambda _, y: reaction(torch.as_tensor(y), true.exp()).numpy()  # noqa: E731
    span = (0, times[-1].item())
    scipy = solve_ivp(r, span, [1.0, 0.0, 0.0], "Radau", times.numpy(), rtol=1e-8, atol=1e-12)

    def loss(log_k: Tensor) -> Tensor:
        return ((trajectory(log_k, times)[0] - target) / SCALE).square().mean()

    start = true + torch.tensor([0.5, -0.7, 0.6], dtype=torch.float64)
    log_k = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(log_k), log_k)
    shifts = 1e-5 * torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        central = torch.stack([(loss(start + e) - loss(start - e)) / 2e-5 for e in shifts])
    optimizer = torch.optim.LBFGS([log_k], max_iter=steps, line_search_fn="strong_wolfe")
    path = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(log_k)
        value.backward()
        path.append((value.item(), log_k.detach().exp().tolist()))
        return value

    optimizer.step(closure)
    draw(times, target, scipy.y.T, path, out)
    return {
        "distance_to_radau": float(np.abs(target.numpy() - scipy.y.T).max()),
        "evaluations_per_step": evals / num_times,
        "gradient_error": ((gradient - central).norm() / central.norm()).item(),
        "last_loss": path[-1][0],
        "worst_rate_error": (log_k.detach().exp() / true.exp() - 1).abs().max().item(),
    }


@house_style()
def draw(times: Tensor, y: Tensor, radau: np.ndarray, path: list, out: Path) -> None:
    """The trajectory beside SciPy's, and the rates on their way to the true ones."""
    figure, (left, right) = panels(2)
    for i, (label, factor) in enumerate((("A", 1), ("B, times 1e4", 1e4), ("C", 1))):
        left.semilogx(times[1:], factor * y[1:, i], label=label, color=f"C{i}")
        left.semilogx(times[1:], factor * radau[1:, i], ".", color=f"C{i}", ms=4)
        right.plot([k[i] / RATES[i] for _, k in path], label=f"k{i + 1} / true k{i + 1}")
    left.set(xlabel="time", ylabel="concentration", title="(a) Trajectory; dots: SciPy's Radau")
    right.set(xlabel="evaluation of the loss", yscale="log", title="(b) Rate over true rate")
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    save_figure(figure, out)


if __name__ == "__main__":
    for key, value in tyro.cli(main).items():
        print(f"{key}: {value:.4g}")

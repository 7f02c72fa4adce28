"""How often each step of a solve waits for its device: `python tests/support/waits_per_step.py`.

Run as a program, it prints a table of all solvers, and the lines that wait most.
"""

from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from waits import Waits, count_waits

import solvers


def waits_per_step(
    f: Callable[..., Tensor], y0: Tensor, *args: Tensor, solver: str = "anderson", **options: Any
) -> list[Waits]:
    """What each step of a solve waits for, from the value of `f` to the next point.

    What `f` waits for counts only where a solver calls it within a step. A solver that makes whole
    solves of others, as `robust` does, gives one entry for all its steps.

    Args:
        f: See `solvers.solve`.
        y0: See `solvers.solve`.
        *args: See `solvers.solve`.
        solver: A registered name.
        **options: See `solvers.Run`.
    """
    if solvers.get_solver(solver).whole:
        with count_waits() as waits:
            solvers.solve(f, y0, *args, solver=solver, throw=False, **options)
        return [waits]
    run, found = solvers.Run(f, y0, *args, solver=solver, **options), []
    while run.point is not None:
        value = f(run.point, *run.args)
        with count_waits() as waits:
            run.tell(value)
        found.append(waits)
    return found


def tanh_contraction(
    device: torch.device, rows: int = 64, size: int = 256, spread: bool = False
) -> tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]:
    """f(y, x, rate) = tanh(rate * y W + x), its start, x and rate.

    W has a spectral radius of 0.9. As in the benchmarks, x is small: then tanh hardly saturates.

    Args:
        device: Where.
        rows: Samples.
        size: Entries of each.
        spread: Whether samples have rates from 0.1 to 1, and so converge at different steps;
            otherwise the rates are 1.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator, dtype=torch.float64)
    weight = (0.9 * weight / torch.linalg.eigvals(weight).abs().max()).to(device, torch.float32)
    x = 0.3 * torch.randn(rows, size, generator=generator).to(device)
    rate = torch.linspace(0.1, 1.0, rows) if spread else torch.ones(rows)
    rate = rate[:, None].to(device)
    return lambda y, x, rate: torch.tanh(rate * (y @ weight) + x), torch.zeros_like(x), x, rate


def _table(title: str, device: torch.device, spread: bool, **options: Any) -> Counter[str]:
    print(f"\n{title}\nsolver            steps  reads/step  most  reads  uploads/step")
    lines = Counter[str]()
    f, y0, *args = tanh_contraction(device, spread=spread)
    for name in solvers.names():
        if "." in name:
            continue
        each = waits_per_step(f, y0, *args, solver=name, max_steps=100, **options)
        steps = len(each)
        if solvers.get_solver(name).whole:
            solved = solvers.solve(f, y0, *args, solver=name, max_steps=100, **options)
            steps = int(solved.num_steps.max()) + 1
        reads = [waits.reads for waits in each]
        uploads = sum(waits.uploads for waits in each) / steps
        usual = median(reads) if len(each) > 1 else sum(reads) / steps
        print(f"{name:16}{steps:7}{usual:12.1f}{max(reads):6}{sum(reads):7}{uploads:14.2f}")
        for waits in each:
            for (kind, line), count in waits.items():
                lines[f"{line} ({kind})"] += count
    return lines


def main() -> None:
    """Print the tables."""
    import standin

    device, lines = standin.register(), Counter[str]()
    lines += _table("Samples kept together", device, spread=False, compact=False)
    lines += _table("Samples kept together, which converge one by one", device, spread=True,
                    compact=False)  # fmt: skip
    lines += _table("Samples that leave the batch one by one", device, spread=True)
    lines += _table("Samples that may be coupled", device, spread=True, independent=False)
    print("\nWaits by line, over all of these")
    for line, count in lines.most_common(25):
        print(f"{count:7} {line}")


if __name__ == "__main__":
    main()

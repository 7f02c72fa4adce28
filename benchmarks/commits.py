"""Time several checkouts of this repository side by side: the shared problems and training steps.

    python benchmarks/commits.py DIR DIR ... [--rounds 25] [--only PART]

Each directory holds a checkout, as `git worktree add --detach DIR COMMIT` makes it, and has a
process of its own, with one thread. They take turns, solve by solve, in changing order. The
figures are medians of processor time, which other work on the machine disturbs less than wall time,
and their ratios to those of the first checkout.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shared_problems import PROBLEMS
from torch import nn

RTOL = 1e-6


class Refiner(nn.Module):
    """A transformer block on the sum of a state and the proposal."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, y: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
        """One refinement."""
        return self.norm(self.block(0.5 * y + y0))


def training_step(backward: str) -> Callable[[], object]:
    """A step of an Attractor on 16 sequences of 81 tokens."""
    from models import Attractor

    torch.manual_seed(0)
    model = Attractor(
        nn.Linear(16, 64), Refiner(), solver="anderson", backward=backward, max_steps=8
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x = torch.randn(16, 81, 16)

    def step() -> None:
        optimizer.zero_grad()
        model(x).value.square().mean().backward()
        optimizer.step()

    return step


@torch.no_grad()
def large_state() -> tuple[Callable[..., torch.Tensor], torch.Tensor]:
    """A map of 512 x 1024 numbers, and its input: a window of eight states has 16 MB."""
    g = torch.Generator().manual_seed(0)
    weight = 0.9 * torch.randn(1024, 1024, generator=g) / 32
    return lambda y, x: torch.tanh(torch.addmm(x, y, weight)), torch.randn(512, 1024, generator=g)


def cases() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import solvers

    found: dict[str, Callable[[], object]] = {}
    for key, make in PROBLEMS.items():
        problem = make()
        posed = problem.to(torch.float32)
        for name in ("picard", "anderson", "broyden"):
            found[f"({key}) {name}"] = lambda posed=posed, name=name, most=problem.max_steps: (
                solvers.solve(
                    posed.f, posed.y0, *posed.args, solver=solvers.get_solver(name, rtol=RTOL),
                    max_steps=most, throw=False,
                )
            )  # fmt: skip
    f, x = large_state()
    for name in ("picard", "anderson", "broyden"):
        found[f"512 x 1024, {name}"] = lambda name=name: solvers.solve(
            f, torch.zeros_like(x), x, solver=solvers.get_solver(name, rtol=RTOL), compact=False
        )
    # About as many as these solvers make.
    found["512 x 1024, 28 calls of f"] = lambda: [f(x, x) for _ in range(28)]
    for backward in ("phantom", "exact"):
        found[f"training step, {backward}"] = training_step(backward)
    return found


def work() -> None:
    """Run a case for each line of the input, and print its milliseconds."""
    torch.set_num_threads(1)
    found = cases()
    print(json.dumps(list(found)), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        found[json.loads(line)]()
        print(1e3 * (time.process_time() - began), flush=True)


def main() -> None:
    """Time all checkouts, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    options = parser.parse_args()
    workers, names = [], []
    for checkout in options.checkouts:
        here = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker"]
        workers.append(subprocess.Popen(command, env=here, text=True, stdin=-1, stdout=-1))
        known = json.loads(workers[-1].stdout.readline())
        names = [name for name in known if options.only in name]
    times = {name: [[] for _ in workers] for name in names}
    for number in range(-1, options.rounds):  # the first round warms up
        for name in names:
            turns = list(enumerate(workers))
            random.Random(f"{name} {number}").shuffle(turns)
            for place, worker in turns:
                worker.stdin.write(json.dumps(name) + "\n")
                worker.stdin.flush()
                taken = float(worker.stdout.readline())
                if number >= 0:
                    times[name][place].append(taken)
    print("| | " + " | ".join(f"{path.name}, ms" for path in options.checkouts) + " |")
    print("| --- |" + " ---: |" * len(workers))
    for name, each in times.items():
        first, *others = (statistics.median(taken) for taken in each)
        rest = "".join(f" {other:.3g} ({other / first:.3f}) |" for other in others)
        print(f"| {name} | {first:.3g} |{rest}")
    for worker in workers:
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    work() if "--worker" in sys.argv else main()

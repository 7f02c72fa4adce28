# %% [markdown]
# # Debugging a solve step by step
#
# A layer works on most inputs and fails on some. Where does it fail, and why? This page takes a
# small recurrent map with four samples, three of which have something wrong with them, and goes
# from the verdicts to the cause.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers
from solvers import Result

torch.manual_seed(0)
n = 16
W = torch.randn(n, n, dtype=torch.float64)
W = W / torch.linalg.eigvals(W).abs().max()  # spectral radius 1
names = ["well", "slow", "too strong", "bad input"]
x = torch.randn(4, n, dtype=torch.float64)
gain = torch.tensor([[0.6], [0.99], [1.4], [0.6]], dtype=torch.float64)
x[3, 5] = torch.inf


def f(y, x, gain):
    return gain * y @ W.T + x


y0 = torch.zeros_like(x)
s = solvers.solve(f, y0, x, gain, solver="picard", max_steps=200, throw=False)
print(s.describe())
for name, code, steps in zip(names, s.result.tolist(), s.num_steps.tolist(), strict=True):
    print(f"{name:10} {Result(code).name:10} after {steps} steps")

# %% [markdown]
# A `Run` is the same solve, one step at a time. `run.point` is where it needs the map next,
# `run.tell` takes the value there. Between two steps there is time to look at anything, or for a
# breakpoint. Samples that have stopped leave the batch, so that `run.args` has the arguments of
# those that are left.

# %%
run = solvers.Run(f, y0, x, gain, solver="picard", max_steps=200)
calls = 0
while run.point is not None:
    y, fy = run.point, f(run.point, *run.args)
    if calls % 25 == 0:
        size = (fy - y).square().mean(1).sqrt()
        print(f"call {calls:3}, {len(y)} in the batch, residuals", *[f"{r:.1e}" for r in size])
    run.tell(fy)
    calls += 1
assert torch.equal(run.solution().result, s.result)

# %% [markdown]
# The last sample never was in the batch for long: its input is not finite, which no solver can
# mend. The others are a matter of the spectral radius of df/dy. The rate at which a residual falls
# in the long run shows it, and `spectral_radius` measures it at any point.

# %%
good = x[:3], gain[:3]
trace = solvers.trace(f, y0[:3], *good, solver="picard", max_steps=200)
measured = implicit.spectral_radius(f, y0[:3], *good, num_steps=n)
for i, name in enumerate(names[:3]):
    rate, radius = trace.contraction_rate[i].item(), measured.radius[i].item()
    print(f"{name:10} residual changes by {rate:.3f} a call; spectral radius {radius:.3f}")

# %% [markdown]
# Plain iteration needs all eigenvalues of df/dy in the unit circle, and the picture shows where
# they are. A window of past states reaches a fixed point whatever the radius is. Since this map is
# linear, it needs about as many calls as a sample has entries.

# %%
window = solvers.trace(f, y0[:3], *good, solver=solvers.Anderson(history=n), max_steps=200)
print("anderson:", window.solution.describe())

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for i, name in enumerate(names[:3]):
    (line,) = left.semilogy(trace.residual[:, i], label=f"{name}, picard")
    left.semilogy(window.residual[:, i], ":", color=line.get_color(), label="with a window")
left.set(xlabel="calls of the map", ylabel="residual", ylim=(1e-8, 1e6), xlim=(0, 120))
left.legend(fontsize=8)
right.add_patch(plt.Circle((0, 0), 1, fill=False))
for i, name in enumerate(names[:3]):
    values = gain[i] * torch.linalg.eigvals(W)
    right.plot(values.real, values.imag, ".", label=name)
right.set(title="eigenvalues of df/dy, and the unit circle", aspect="equal")
plt.show()

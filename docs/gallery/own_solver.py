# %% [markdown]
# # A solver of your own
#
# A solver is a frozen dataclass with two methods: `init` makes its memory, and `step` makes the
# next state from y and f(y). The loop, the tolerances, the verdicts and the gradient are there
# already. This page adds second order Richardson iteration,
#
# $$ y_{\mathrm{next}} = \omega f(y) + (1 - \omega)\, y_{\mathrm{previous}}, \qquad
# \omega = \frac{2}{1 + \sqrt{1 - \rho^2}}, $$
#
# the fastest of this form if the Jacobian has real eigenvalues between -rho and rho (G. H. Golub
# and R. S. Varga, *Chebyshev semi-iterative methods, successive overrelaxation iterative methods,
# and second order Richardson iterative methods*, 1961).

# %%
import math
from dataclasses import dataclass
from typing import ClassVar, final

import matplotlib.pyplot as plt
import torch

import implicit
import solvers

# %% [markdown]
# The suite of tests asks on which maps a solver converges, and each class declares it. An
# eigenvalue z of the Jacobian makes the error grow by a root of r^2 - omega z r + omega - 1. The
# roots are in the unit disc for z in an ellipse with half axes 1 (real) and 2 / omega - 1
# (imaginary): the two radii below. Their modulus is at least sqrt(omega - 1), so that where the
# map contracts strongly a step does less than one of Picard's: `pace`.


# %%
@final
@solvers.register("richardson2")
@dataclass(frozen=True, kw_only=True)
class Richardson2(solvers.FixedPointSolver):
    rho: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.rho < 1:
            raise ValueError(f"`rho` must lie in [0, 1), got {self.rho!r}.")

    @property
    def omega(self):
        return 2 / (1 + math.sqrt(1 - self.rho**2))

    @property
    def promises(self):
        return solvers.Promises(radius=2 / self.omega - 1, real_radius=1.0, pace=0.5)

    def init(self, y):  # the memory is the previous state
        return y

    def step(self, y, fy, previous):
        return self.omega * fy + (1 - self.omega) * previous, y


# %% [markdown]
# The suite has linear and nonlinear maps, several dtypes and batch sizes, samples with NaN, and
# more. It returns if all is well, and otherwise names each property that fails. A solver that
# promises too much is found out:


# %%
@dataclass(frozen=True, kw_only=True)
class TooProud(solvers.FixedPointSolver):
    promises: ClassVar = solvers.Promises(radius=1.0)
    init, step, omega = Richardson2.init, Richardson2.step, Richardson2(rho=0.9).omega


solvers.testing.check(Richardson2)
implicit.testing.check("exact", solvers=["richardson2"])
print("Richardson2 passes, and so do gradients through it.")
try:
    solvers.testing.check(TooProud)
except AssertionError as error:
    print(str(error).split(".")[0])

# %% [markdown]
# It is known by its name now, in `fixed_point`, in a layer, and in `solve`. On a symmetric map:

# %%
torch.manual_seed(0)
Q = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64)).Q
J = Q @ torch.diag(torch.linspace(-0.99, 0.99, 50, dtype=torch.float64)) @ Q.T
b = torch.randn(1, 50, dtype=torch.float64)
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, options in {"picard": {}, "richardson2": {"rho": 0.99}, "anderson": {}}.items():
    solver = solvers.get_solver(name, rtol=1e-9, **options)
    trace = solvers.trace(lambda y: y @ J + b, b, solver=solver, max_steps=1500)
    print(f"{name:12} {trace.solution.num_evals:4} calls")
    ax.semilogy(trace.residual, label=name)
ax.set(xlabel="calls of the map", ylabel="residual", xlim=(0, 500))
ax.legend()
plt.show()

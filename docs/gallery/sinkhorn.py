# %% [markdown]
# # Optimal transport by Sinkhorn's iteration, and the gradient of its cost
#
# How is a pile of sand with shape a moved into the shape b, if moving a unit from i to j costs
# $C_{ij}$? With an entropy term of weight $\varepsilon$, the plan is
# $P_{ij} = a_i b_j e^{(u_i + v_j - C_{ij}) / \varepsilon}$, and its potentials solve (M. Cuturi,
# *Sinkhorn Distances*, NeurIPS 2013; in logarithms here)
#
# $$ v_j = -\varepsilon \log \sum_i a_i\, e^{(u_i - C_{ij}) / \varepsilon}, \qquad
# u_i = -\varepsilon \log \sum_j b_j\, e^{(v_j - C_{ij}) / \varepsilon}. $$
#
# Both together are one map u -> u.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

n, eps = 60, 0.005
x = torch.linspace(0, 1, n, dtype=torch.float64)
a = torch.exp(-(((x - 0.25) / 0.08) ** 2)) + 1e-4
b = 0.6 * torch.exp(-(((x - 0.55) / 0.05) ** 2)) + torch.exp(-(((x - 0.85) / 0.04) ** 2)) + 1e-4
a, b = a / a.sum(), b / b.sum()
C = (x[:, None] - x).square()


def other(u, C):
    return -eps * torch.logsumexp(a.log()[:, None] + (u[:, None] - C) / eps, 0)


def sinkhorn(u, C):
    u = -eps * torch.logsumexp(b.log() + (other(u, C) - C) / eps, 1)
    return u - u.mean()


# %% [markdown]
# The subtraction in the last line matters for the gradient. Adding a constant to u and subtracting
# it from v changes nothing, so that without it there is a line of fixed points, I - df/du is
# singular, and the adjoint equation has no unique solution. Fixing the mean of u picks one point
# of the line.

# %%
picard, anderson = (S(rtol=1e-11, atol=1e-12) for S in (solvers.Picard, solvers.Anderson))


def solve(C, solver=anderson):
    how = {"solver": solver, "batch_dims": 0, "max_steps": 2000}
    return implicit.fixed_point(lambda u: sinkhorn(u, C), torch.zeros_like(a), **how)


def plan(u, C):
    v = other(u, C)
    return a[:, None] * b * torch.exp((u[:, None] + v - C) / eps)


for name, solver in (("plain Sinkhorn", picard), ("with Anderson", anderson)):
    s = solve(C, solver)
    error = (plan(s.value, C).sum(1) - a).abs().sum()
    print(f"{name}: {s.num_evals} calls, the plan's first marginal is off by {error:.0e}")

# %% [markdown]
# Two functions of C to differentiate. The **regularised value**, sum a u + sum b v, is the optimum
# of a concave problem in (u, v), so that its gradient is the plan itself, whatever du/dC may be.
# The **cost** <P, C> is not, and its gradient needs du/dC, which `fixed_point` supplies.


# %%
def value(C):
    u = solve(C).value
    return a @ u + b @ other(u, C)


def cost(C):
    return (plan(solve(C).value, C) * C).sum()


P = plan(solve(C).value, C)
by_value, by_cost = torch.func.grad(value)(C), torch.func.grad(cost)(C)
print(f"value: its gradient differs from the plan by {(by_value - P).abs().max():.0e}")
torch.manual_seed(0)
direction, h = torch.randn_like(C) * P / P.max(), 1e-5
difference = (cost(C + h * direction) - cost(C - h * direction)) / (2 * h)
print(f"cost {cost(C):.6f}; along a direction {(by_cost * direction).sum():.8f}", end="")
print(f", by differences {difference:.8f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.plot(x, a, label="a")
left.plot(x, b, label="b")
left.legend()
for ax, field, title in ((middle, P, "plan P"), (right, by_cost, "d cost / dC")):
    limit = field.abs().max().item()
    shown = ax.imshow(field, cmap="RdBu", vmin=-limit, vmax=limit, extent=(0, 1, 1, 0))
    figure.colorbar(shown, ax=ax)
    ax.set(title=title, xlabel="to", ylabel="from")
plt.show()

# %% [markdown]
# # Steady heat, and its gradient in both directions
#
# A plate with cold borders is heated by a source q and conducts better where it is hot:
#
# $$
# -\nabla \cdot \big(k(u) \nabla u\big) = q, \qquad k(u) = 1 + u^2.
# $$
#
# With differences on a grid, each node's equation is solved for its own value, which gives
# Jacobi's iteration, a fixed point: u = (q h^2 + sum of k u over neighbours) / (sum of k over
# neighbours). The page differentiates the mean temperature of a corner with respect to the source
# at every node.

# %%
import matplotlib.pyplot as plt
import torch
from torch.func import grad, jvp

import implicit
import solvers

n = 20  # nodes inside, in each direction
h = 1 / (n + 1)
x = torch.linspace(h, 1 - h, n, dtype=torch.float64)
source = 60 * torch.exp(-40 * ((x[:, None] - 0.35) ** 2 + (x[None] - 0.4) ** 2))


def jacobi(u, q):
    padded = torch.nn.functional.pad(u, (1, 1, 1, 1))
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    conducts = [1 + (u**2 + v**2) / 2 for v in around]  # the mean of both ends of a link
    total = sum(k * v for k, v in zip(conducts, around, strict=True))
    return (q * h**2 + total) / sum(conducts)


tight = solvers.Anderson(rtol=1e-12, atol=1e-12)  # differences below need both


def temperature(q):
    return implicit.fixed_point(
        lambda u: jacobi(u, q), torch.zeros_like(q), solver=tight, batch_dims=0, max_steps=2000,
        backward=implicit.Exact(solver="gmres", max_steps=400),
    )  # fmt: skip


s = temperature(source)
print(s.describe(), f"{s.num_evals} calls of the map.")
plain = solvers.solve(
    lambda u: jacobi(u, source), torch.zeros_like(source), batch_dims=0, max_steps=5000,
    solver=solvers.Picard(rtol=1e-8, atol=1e-8),
)  # fmt: skip
print(f"Plain Jacobi iteration makes {plain.num_evals} calls for a looser tolerance.")

# %% [markdown]
# **Reverse mode** solves one adjoint equation, and its answer has an entry for every node of the
# source. **Forward mode** solves one equation for each direction in which the source is changed.
# The derivative along a direction is the same by both, and by differences.


# %%
def corner(q):
    return temperature(q).value[-6:, -6:].mean()


sensitivity = grad(corner)(source)
torch.manual_seed(0)
direction = torch.randn_like(source)
_, forward = jvp(corner, (source,), (direction,))
step = 1e-3
difference = (corner(source + step * direction) - corner(source - step * direction)) / (2 * step)
print(f"reverse mode {(sensitivity * direction).sum().item():.10f}")
print(f"forward mode {forward.item():.10f}")
print(f"differences  {difference.item():.10f}")

# %% [markdown]
# The sensitivity is the answer to a design question: by how much the corner becomes warmer if the
# source becomes stronger at a node. It is large at the corner itself, and falls off towards the
# borders.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
shown = {"source q": source, "temperature u": s.value, "d(mean of the corner) / dq": sensitivity}
for ax, (title, field) in zip(axes, shown.items(), strict=True):
    figure.colorbar(ax.imshow(field.T, origin="lower", extent=(0, 1, 0, 1)), ax=ax)
    ax.set_title(title)
plt.show()

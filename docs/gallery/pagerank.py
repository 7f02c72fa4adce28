# %% [markdown]
# # PageRank, and which link matters
#
# A reader of a small web follows a link of the page with probability d = 0.85, and begins anew at
# any page otherwise. How often each page is read solves
#
# $$
# x = d A x + \frac{1 - d}{n}, \qquad A_{ij} = \frac{w_{ij}}{\sum_k w_{kj}},
# $$
#
# with w_ij the weight of the link from j to i (S. Brin and L. Page, *The anatomy of a large-scale
# hypertextual web search engine*, 1998). Which link should be made stronger so that the page
# "shop" is read more often? The gradient answers for all links at once.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

names = ["home", "news", "blog", "shop", "help", "about", "forum", "press"]
links = {
    "home": ["news", "blog", "about"], "news": ["home", "press", "blog"], "blog": ["forum", "home"],
    "shop": ["home", "help"], "help": ["forum", "shop"], "about": ["home", "press"],
    "forum": ["help", "blog"], "press": ["news", "shop", "about"],
}  # fmt: skip
edges = torch.tensor([[names.index(i), names.index(j)] for j in names for i in links[j]]).T
n, d = len(names), 0.85
tight = {"rtol": 1e-12, "atol": 1e-14}


def solve(weights, solver):
    total = torch.zeros(n, dtype=torch.float64).index_add(0, edges[1], weights)
    A = torch.sparse_coo_tensor(edges, weights / total[edges[1]], (n, n), check_invariants=True)
    return implicit.fixed_point(
        lambda x: d * torch.sparse.mm(A, x[:, None])[:, 0] + (1 - d) / n,
        torch.full((n,), 1 / n, dtype=torch.float64), solver=solver, batch_dims=0, max_steps=400,
    )  # fmt: skip


weights = torch.ones(edges.shape[1], dtype=torch.float64)
for solver in (solvers.Picard(**tight), solvers.Anderson(**tight)):
    s = solve(weights, solver)
    print(f"{type(solver).__name__:8} {s.num_evals:3} calls, the ranks sum to {s.value.sum():.12f}")
for rank, i in sorted(zip(s.value.tolist(), range(n), strict=True), reverse=True):
    print(f"{names[i]:6} {rank:.4f}")

# %% [markdown]
# The gradient with respect to all weights. The weights of a page's links are divided by their sum,
# so that only their ratios matter: weighted by w, the gradient sums to zero over the links of each
# page. A page with a single link would have no influence.

# %%
shop = names.index("shop")
leaf = weights.clone().requires_grad_()
(gradient,) = torch.autograd.grad(solve(leaf, solver).value[shop], leaf)
differences = []
for push in 1e-5 * torch.eye(len(weights), dtype=torch.float64):
    ends = [solve(weights + sign * push, solver).value[shop].item() for sign in (1, -1)]
    differences.append((ends[0] - ends[1]) / 2e-5)
error = (gradient - torch.tensor(differences)).abs().max()
sums = torch.zeros(n, dtype=torch.float64).index_add(0, edges[1], gradient * weights)
print(f"largest difference to finite differences {error:.0e}")
print(f"largest sum over the links of a page {sums.abs().max():.0e}")
order = gradient.argsort(descending=True)
for k in [*order[:3].tolist(), *order[-2:].tolist()]:
    i, j = edges[:, k].tolist()
    print(f"{names[j]:>6} -> {names[i]:6} {gradient[k].item():+.4f}")

# %%
figure, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
angle = 2 * torch.pi * torch.arange(n) / n
place = torch.stack([angle.cos(), angle.sin()], 1)
scale = gradient.abs().max().item()
for k, (i, j) in enumerate(edges.T.tolist()):
    color = plt.colormaps["RdBu"](0.5 + 0.5 * gradient[k].item() / scale)
    style = {"color": color, "arrowstyle": "-|>", "shrinkA": 18, "shrinkB": 18, "lw": 2}
    style["connectionstyle"] = "arc3,rad=0.12"
    ax.annotate("", place[i].tolist(), place[j].tolist(), arrowprops=style)
ax.scatter(*place.T, s=9000 * s.value, color="lightgrey", edgecolor="k", zorder=3)
for name, (x, y) in zip(names, place.tolist(), strict=True):
    ax.text(x, y, name, ha="center", va="center", zorder=4)
ax.set(title="blue: a stronger link helps the shop; red: it harms", xlim=(-1.3, 1.3))
ax.set_axis_off()
plt.show()

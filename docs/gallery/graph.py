# %% [markdown]
# # A graph network with a sparse adjacency matrix
#
# In an implicit graph network the states of all nodes are one fixed point,
#
# $$
# Y = \tanh(\mathrm{gain} \cdot A Y W + X),
# $$
#
# with A the normalised adjacency matrix, so that a message can travel any distance (Gu et al.,
# *Implicit Graph Neural Networks*, NeurIPS 2020). The nodes influence each other, and the solve
# has to be told so: either they are samples with `independent=False`, or the graph is one state
# with `batch_dims=0`.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

torch.manual_seed(0)
side, width = 24, 8  # a grid of nodes, each joined to its neighbours
node = torch.arange(side * side).reshape(side, side)
pairs = torch.cat([
    torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()]),
    torch.stack([node[:-1].flatten(), node[1:].flatten()]),
], 1)  # fmt: skip
edges = torch.cat([pairs, pairs.flip(0)], 1)
degree = torch.bincount(edges[0]).double()
weights = (degree[edges[0]] * degree[edges[1]]).rsqrt()
A = torch.sparse_coo_tensor(edges, weights, check_invariants=True).coalesce()
print(f"{len(node.flatten())} nodes, {A.values().numel()} of {A.numel()} entries of A are not zero")

# %% [markdown]
# A has spectral norm 1 and W is orthogonal, so that the gain bounds the norm of the Jacobian:
# below 1 there is exactly one fixed point. Only one corner of the grid has an input.

# %%
W = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q
W.requires_grad_()
X = torch.zeros(side * side, width, dtype=torch.float64)
X[0] = 1.0
anderson, picard = (S(rtol=1e-11, atol=1e-14) for S in (solvers.Anderson, solvers.Picard))
exact = implicit.Exact(solver="gmres", max_steps=500)


def solve(W, gain=0.98, solver=anderson, **coupling):
    def f(Y, X):
        return torch.tanh(gain * torch.sparse.mm(A, Y) @ W + X)

    return implicit.fixed_point(
        f, torch.zeros_like(X), X, solver=solver, backward=exact, max_steps=4000, **coupling
    )


joint = solve(W, batch_dims=0)
nodes = solve(W.detach(), solver=picard, independent=False)
print(f"one state:         {joint.num_evals} calls, residual {joint.residual.item():.1e}")
print(f"a sample per node: {nodes.num_evals} calls, {nodes.residual.shape[0]} residuals")
print(f"difference of the answers: {(joint.value - nodes.value).abs().max().item():.1e}")

# %% [markdown]
# With `batch_dims=0` there is one verdict, and `anderson` has one set of mixing coefficients for
# the whole graph. With `independent=False` each node has a residual of its own, which the picture
# below shows. A node would then have mixing coefficients of its own, which help little where all
# nodes depend on each other: plain iteration, which has none, is the safe choice.
#
# A node is white in the picture where its residual is zero: it was updated after its neighbours
# had stopped. The gradient of what arrives in the opposite corner, with respect to the weights,
# has travelled back through the whole graph:

# %%
arrived = joint.value[-1].square().sum()
(gradient,) = torch.autograd.grad(arrived, W)
direction = torch.randn_like(W)
h = 1e-5
with torch.no_grad():
    ends = [solve(W + s * direction, batch_dims=0).value[-1].square().sum() for s in (h, -h)]
slope, difference = (gradient * direction).sum().item(), (ends[0] - ends[1]).item() / (2 * h)
print(f"derivative along a direction {slope:.6e}, by differences {difference:.6e}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
size = joint.value.detach().norm(dim=1).reshape(side, side)
figure.colorbar(left.imshow(size.log10()), ax=left, label="log10 of the norm of the state")
drawn = middle.imshow(nodes.residual.log10().reshape(side, side), cmap="magma")
figure.colorbar(drawn, ax=middle, label="log10 of a node's residual")
for gain in (0.5, 0.9, 0.98):
    value = solve(W.detach(), gain, batch_dims=0).value.norm(dim=1).reshape(side, side)
    right.semilogy(value.diagonal(), label=f"gain {gain}")
right.set(xlabel="step along the diagonal", ylabel="norm of the state")
right.legend()
plt.show()

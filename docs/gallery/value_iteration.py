# %% [markdown]
# # Value iteration, and what a reward is worth
#
# An agent walks over a grid, slips now and then, and is paid at a goal, from which it is carried
# back to the start. The value of a cell under the best policy solves Bellman's equation (R.
# Bellman, *Dynamic Programming*, 1957),
#
# $$
# V(s) = \max_a \Big[ r(s, a) + \gamma \sum_{s'} p(s' \mid s, a)\, V(s') \Big],
# $$
#
# whose right side contracts by the factor gamma, so that plain iteration is slow when gamma is
# near 1.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

side, gamma, slip = 12, 0.98, 0.1
moves = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
walls = torch.zeros(side, side, dtype=torch.bool)
walls[3, 2:] = walls[8, :9] = True
goal, start = (0, side - 1), (side - 1, 0)

# transitions[a, s, s']: the agent goes where it wants, or slips into any direction.
cell = torch.cartesian_prod(torch.arange(side), torch.arange(side))
target = (cell[None] + moves[:, None]).clamp(0, side - 1)
blocked = walls[target[..., 0], target[..., 1]]
target = torch.where(blocked[..., None], cell, target)
goes = torch.nn.functional.one_hot(target[..., 0] * side + target[..., 1], side**2).double()
transitions = (1 - slip) * goes + slip * goes.mean(0)
finish = goal[0] * side + goal[1]
first = start[0] * side + start[1]
transitions[:, finish] = torch.nn.functional.one_hot(torch.tensor(first), side**2).double()
reward = torch.full((4, side**2), -0.01, dtype=torch.float64)  # a step costs a little
reward[:, finish] = 1.0


def bellman(V, reward):
    return (reward + gamma * transitions @ V).max(0).values


# %% [markdown]
# Plain iteration gains the factor gamma with each call. A window of past values helps little here:
# the maximum makes the map only piecewise smooth, and the best actions change while the news of
# the goal travels to the start. Newton's method is policy iteration: each step solves the linear
# equation of the policy that is best at the current values. (It does so by products with the
# derivative, which are no calls of the map and are not counted.)

# %%
V0 = torch.zeros(side**2, dtype=torch.float64)


def solve(reward, name="anderson"):
    solver = solvers.get_solver(name, rtol=1e-10, atol=1e-12)
    return implicit.fixed_point(
        lambda V: bellman(V, reward), V0, solver=solver, batch_dims=0, max_steps=3000
    )


for name in ("picard", "anderson", "anderson_safe", "newton_krylov"):
    s = solve(reward, name)
    print(f"{name:14} {s.num_evals:4} calls, the start is worth {s.value[first].item():.6f}")

# %% [markdown]
# **What is a reward worth?** The derivative of V(start) with respect to r(s, a) is the discounted
# number of times that the best policy takes action a in cell s, a linear equation by itself, which
# checks the gradient.

# %%
leaf = reward.clone().requires_grad_()
(worth,) = torch.autograd.grad(solve(leaf).value[first], leaf)
policy = (reward + gamma * transitions @ s.value).argmax(0)
under = transitions[policy, torch.arange(side**2)]
at_start = torch.nn.functional.one_hot(torch.tensor(first), side**2).double()
visits = torch.linalg.solve(torch.eye(side**2).double() - gamma * under.T, at_start)
print(f"largest difference to the visits: {(worth.sum(0) - visits).abs().max().item():.0e}")
best_cell = int(torch.where(torch.arange(side**2) == first, 0, worth.sum(0)).argmax())
print(f"visited most but for the start: row {best_cell // side}, column {best_cell % side}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
hidden = torch.where(walls.flatten(), torch.nan, 0.0)
for ax, field, title in ((left, s.value, "value"), (right, worth.sum(0), "worth of a reward")):
    shown = ax.imshow((field.detach() + hidden).reshape(side, side))
    figure.colorbar(shown, ax=ax)
    ax.set_title(title)
free = ~walls.flatten()
arrows = moves[policy][free].double()
left.quiver(cell[free, 1], cell[free, 0], arrows[:, 1], -arrows[:, 0], color="w", pivot="mid")
plt.show()

# %% [markdown]
# # More time at test time: depth and breadth
#
# A model that is solved can be given more time than in training in two ways: *depth*, more steps
# of a solve, and *breadth*, solves from several random starts, of which one answer is chosen. Here
# a small Attractor completes Latin squares of order 4, in which every row and column has each
# symbol once. Several completions may exist. The rules tell a right answer without knowing one, so
# that they may choose.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, one_hot

from models import Attractor

torch.manual_seed(0)
n, width = 4, 32


def puzzles(count, given=6):
    """Latin squares with a few cells left, the others have the symbol n; and whole squares."""
    rows, columns, symbols = (torch.rand(count, n).argsort(1) for _ in range(3))
    square = (rows[:, :, None] + columns[:, None]) % n  # a shuffled table of addition
    square = symbols.gather(1, square.flatten(1)).reshape(-1, n, n)
    shown = torch.rand(count, n * n).argsort(1).argsort(1) < given
    return torch.where(shown.reshape(-1, n, n), square, n), square


def is_latin(answer):
    """Whether every row and every column has each symbol once."""
    counts = one_hot(answer, n)
    return ((counts.sum(1) == 1) & (counts.sum(2) == 1)).flatten(1).all(1)


# %% [markdown]
# Each cell hears the means of its row, of its column and of all cells. In training the solve
# starts at the proposal plus noise, so that different starts may lead to different answers.


# %%
class Refiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4 * width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, y, y0):
        row, column = y.mean(2, keepdim=True), y.mean(1, keepdim=True)
        whole = (y * y0).mean((1, 2), keepdim=True)
        views = [y + y0, *(mean.expand_as(y) for mean in (column, row, whole))]
        return torch.tanh(self.second(gelu(self.first(torch.cat(views, -1)))) + y0)


backbone, decode = nn.Embedding(n + 1, width), nn.Linear(width, n)
model = Attractor(backbone, Refiner(), backward="phantom", max_steps=10, start_noise=0.5)
optimizer = torch.optim.Adam([*model.parameters(), *decode.parameters()], lr=4e-3)
for _ in range(450):
    board, square = puzzles(64)
    logits = decode(model(board).value)
    loss = cross_entropy(logits.flatten(0, 2), square.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# At test time, up to 16 starts and 64 steps. The answer is one that keeps the rules, if there is
# one among them; without rules, it could be the one with the smallest residual.

# %%
board, _ = puzzles(300)
budgets, breadths = [2, 4, 8, 12, 16, 32, 64], [1, 2, 4, 8, 16]
by_rule, by_residual = torch.zeros(2, len(breadths), len(budgets))
for j, budget in enumerate(budgets):
    right, residuals = [], []
    for _ in range(max(breadths)):
        with torch.no_grad():
            proposal = model.backbone(board)
            out = model(board, max_steps=budget, start=proposal + torch.randn_like(proposal))
            answer = torch.where(board < n, board, decode(out.value).argmax(-1))
        right.append(is_latin(answer))
        residuals.append(out.solution.residual)
    right, residuals = torch.stack(right).float(), torch.stack(residuals)
    for i, b in enumerate(breadths):
        by_rule[i, j] = right[:b].amax(0).mean()
        by_residual[i, j] = right.gather(0, residuals[:b].argmin(0, keepdim=True)).mean()
for i, b in enumerate(breadths):
    best = int(by_rule[i].argmax())
    shares = f"{by_rule[i, best]:.1%} by rules, {by_residual[i, best]:.1%} by residual"
    print(f"{b:2} starts, {budgets[best]} steps: solved {shares}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
for ax, shares, title in zip(axes, (by_rule, by_residual), ("rules", "residual"), strict=True):
    ax.semilogx(budgets, shares.T, ".-", base=2, label=[f"{b} starts" for b in breadths])
    ax.axvline(10, color="lightgrey")
    ax.set(xlabel="steps; grey: in training", title=f"solved, chosen by the {title}")
axes[0].legend()
plt.show()

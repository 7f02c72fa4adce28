# %% [markdown]
# # The Attractor around a small CNN
#
# `models.Attractor` wraps any two networks: a backbone proposes an answer, and the fixed point of
# a refiner that starts there is the output (*Solve the Loop: Attractor Models for Language and
# Reasoning*, arXiv:2605.12466). Here both are convolutions of three pixels, and the task needs far
# sight: from a seed, colour the part of the picture that is connected to it.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, max_pool2d

from models import Attractor

torch.manual_seed(0)
size, width = 8, 16


def pictures(count):
    """Free pixels and a seed, shape (count, 2, size, size), and what is connected to the seed."""
    free = (torch.rand(count, 1, size, size) > 0.38).float()
    seed = torch.zeros(count, size * size)
    seed[torch.arange(count), torch.multinomial(free.flatten(1), 1)[:, 0]] = 1
    filled = seed = seed.reshape(free.shape)
    for _ in range(size * size // 2):
        across = max_pool2d(filled, (1, 3), 1, (0, 1))
        filled = torch.maximum(across, max_pool2d(filled, (3, 1), 1, (1, 0))) * free
    return torch.cat([free, seed], 1), filled


# %% [markdown]
# The refiner is applied until nothing changes, so that information travels as far as it has to.


# %%
class Refiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(2 * width, width, 1)

    def forward(self, y, y0):
        return torch.tanh(self.out(torch.relu(self.mix(torch.cat([y, y0], 1)))) + y0)


backbone = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))
attractor = Attractor(backbone, Refiner(), solver="anderson", backward="phantom", max_steps=20)
decode = nn.Conv2d(width, 1, 1)
optimizer = torch.optim.Adam([*attractor.parameters(), *decode.parameters()], lr=3e-3)
for _ in range(450):
    x, filled = pictures(32)
    loss = binary_cross_entropy_with_logits(decode(attractor(x).value), filled)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# How good is the answer after a number of steps? `max_steps=0` is the backbone's proposal alone.

# %%
test, truth = pictures(500)
budgets, quality = [0, 1, 2, 4, 8, 16, 32, 64], []
with torch.no_grad():
    for budget in budgets:
        out = attractor(test, max_steps=budget)
        right = (decode(out.value) > 0) == (truth > 0)
        pixels, whole = right[test[:, :1] > 0].float(), right.flatten(1).all(1).float()
        quality.append([pixels.mean(), whole.mean()])
        print(
            f"{budget:3} steps: {pixels.mean():.1%} of free pixels, {whole.mean():.1%} of pictures"
        )
print(out.solution.describe())

# %% [markdown]
# The answers become better with more steps than training has ever made. The verdict of each
# picture says whether its answer has settled; those that have are right more often.

# %%
settled = out.solution.converged
for name, chosen in {"settled": settled, "not settled": ~settled}.items():
    print(f"{name}: {chosen.sum()} pictures, {whole[chosen].mean():.0%} of them whole")

# %%
figure, axes = plt.subplots(2, 5, figsize=(12, 5), layout="constrained")
axes[0, 0].plot(budgets, quality, ".-", label=["pixels", "whole pictures"])
axes[0, 0].set(xlabel="steps", ylabel="share that is right", xscale="symlog")
axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1))
example = int(truth.sum((1, 2, 3)).argmax())
panels = {"free and seed": test[example, 0] + 2 * test[example, 1], "truth": truth[example, 0]}
with torch.no_grad():
    for budget in (0, 1, 2, 4, 8, 16, 64):
        value = attractor(test[example, None], max_steps=budget).value
        panels[f"{budget} steps"] = decode(value).sigmoid()[0, 0] * test[example, 0]
for ax, (name, picture) in zip(axes.flatten()[1:], panels.items(), strict=True):
    ax.imshow(picture)
    ax.set(title=name, xticks=[], yticks=[])
plt.show()

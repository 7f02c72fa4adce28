# %% [markdown]
# # A backbone of your own
#
# The backbone of an `Attractor` may be any module that maps an input x to a proposal y0, and the
# refiner any module that maps (y, y0) to a new y of the same shape. Here numbers are added by
# their digits, so that a carry may travel far. The same refiner works behind two backbones: a
# convolution, which sees three columns, and a GRU, which goes through them as the carries do.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from models import Attractor

size, width = 16, 32


def additions(count):
    """Two numbers, lowest digit first, shape (count, size, 2); and the digits of their sum."""
    a, b = torch.randint(10, (2, count, size))
    b = torch.where(torch.rand(count, size) < 0.6, 9 - a, b)  # where a carry is passed on
    carry, digits = torch.zeros(count, dtype=torch.int64), []
    for total in (a + b).T:
        digits.append((total + carry) % 10)
        carry = (total + carry) // 10
    return torch.stack([a, b], 2), torch.stack(digits, 1)


class Convolution(nn.Conv1d):
    def __init__(self, into, out):
        super().__init__(into, out, 3, padding=1)

    def forward(self, h):
        return super().forward(h.mT).mT


class Recurrence(nn.GRU):
    def __init__(self, into, out):
        super().__init__(into, out, batch_first=True)

    def forward(self, h):
        return super().forward(h)[0]


class Refiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = Convolution(2 * width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, y, y0):
        return torch.tanh(self.out(torch.relu(self.mix(torch.cat([y, y0], 2)))) + y0)


# %%
budgets, right, steps = (0, 1, 2, 4, 8, 16, 32), {}, {}
for layer in (Convolution, Recurrence):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Embedding(10, width), nn.Flatten(2), layer(2 * width, width))
    model, decode = Attractor(backbone, Refiner(), backward="phantom"), nn.Linear(width, 10)
    optimizer = torch.optim.Adam([*model.parameters(), *decode.parameters()], lr=4e-3)
    for _ in range(300):
        x, digits = additions(32)
        out = model(x, max_steps=12)
        loss = cross_entropy(decode(out.value).flatten(0, 1), digits.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (x, digits), name = additions(500), layer.__name__
    right[name] = []
    for budget in budgets:
        with torch.no_grad():
            out = model(x, max_steps=budget)
        right[name].append((decode(out.value).argmax(2) == digits).float().mean().item())
    steps[name] = out.solution.num_steps
    shares = ", ".join(f"{share:.0%}" for share in right[name])
    print(f"{name}: {shares} of digits right, {out.solution.converged.sum()} of 500 converged")

# %% [markdown]
# Digits that are right after 0 to 32 steps; 0 steps is the proposal alone. The recurrence proposes
# more right digits, and behind both backbones the solve adds to them what its steps carry along.

# %%
figure, (left, last) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
for name, shares in right.items():
    left.plot(budgets, shares, ".-", label=name)
left.set(xlabel="steps", ylabel="digits that are right", xscale="symlog")
left.legend()
last.hist([s.numpy() for s in steps.values()], bins=range(0, 34, 3), label=[*steps])
last.set(xlabel="steps to the fixed point, at most 32", ylabel="samples")
plt.show()

# %% [markdown]
# # Mixed precision and accumulated gradients, by accelerate
#
# `prepare` puts a model under autocast, and `accumulate` adds up the gradients of small batches;
# both pass a `Solution` on unchanged. Are these gradients those of a large batch? And how exact is
# the fixed point of a rounded map? The model says of six numbers which place each has among them.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader

import solvers
from implicit import cached_weights, spectral_normalise
from models import Attractor

try:
    from accelerate import Accelerator
except ImportError:
    raise SystemExit("This page needs accelerate: pip install -e '.[integrations]'.") from None

torch.manual_seed(0)
count, width = 6, 128


class Refiner(nn.Linear):
    def forward(self, y, y0):
        return torch.tanh(super().forward(y) + y0)


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        backbone = nn.Sequential(nn.Linear(count, width), nn.GELU(), nn.Linear(width, width))
        refiner = spectral_normalise(Refiner(width, width), bound=0.95)
        self.attractor = Attractor(backbone, refiner, solvers.Anderson(rtol=1e-2), "phantom")
        self.decode = nn.Linear(width, count * count)

    def forward(self, numbers):
        with cached_weights(self):  # the solver's state has the precision of the proposal
            out = self.attractor.refine(self.attractor.backbone(numbers).float())
        return self.decode(out.value).unflatten(1, (count, count)), out.solution


def loss_of(numbers):
    (logits, s), places = model(numbers), numbers.argsort(1).argsort(1)
    right = (logits.argmax(2) == places).float().mean()
    return nn.functional.cross_entropy(logits.flatten(0, 1), places.flatten()), right, s


accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
model, loader = Places(), DataLoader(torch.randn(4096, count), 16, shuffle=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for numbers in (numbers for _ in range(3) for numbers in loader):
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(numbers)[0])
        optimizer.step()
        optimizer.zero_grad()
_, right, s = loss_of(test := torch.randn(1000, count))
print(f"{right:.1%} of places are right. {s.describe()}")

# %% [markdown]
# A sample's solution does not depend on its batch, so that gradients add up, up to rounding.
# `unwrap_model` takes autocast off again, for comparison with the map in float32: from its fixed
# point that of the rounded map is away by the rounding, and tolerances below it cost steps only.


# %%
def gradient(size):
    losses = [loss_of(numbers)[0] * size / 64 for numbers in test[:64].split(size)]
    return torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses), [*model.parameters()])])


for name in ("bfloat16", "float32"):
    whole, parts = gradient(64), gradient(16)
    print(f"{name}: gradients differ by {(parts - whole).norm() / whole.norm():.0e}")
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)


def solve(rtol, rounded):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        y0, solver = model.attractor.backbone(test).float(), solvers.Anderson(rtol=rtol, atol=0)
        return solvers.solve(model.attractor.solving.module, y0, y0, solver=solver, throw=False)


exact, tolerances, found = solve(1e-6, False).value, [10.0**-k for k in range(1, 6)], []
for rtol in tolerances:
    s = solve(rtol, True)
    found.append([s.num_steps.float().mean(), (s.value - exact).norm() / exact.norm()])
    print("rtol {:.0e}: {:.1f} steps, {:.2%} away from the fixed point".format(rtol, *found[-1]))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for ax, name, values in zip(axes, ("steps", "relative error"), torch.tensor(found).T, strict=True):
    ax.plot(tolerances, values, ".-")
    ax.set(xlabel="rtol", xscale="log", ylabel=name)
plt.show()

# %% [markdown]
# # A classifier with a fixed point for a hidden layer
#
# A deep equilibrium model has no stack of layers. Its hidden state y solves y = tanh(W y + U x +
# b), and a linear layer reads the classes from it (Bai, Kolter, Koltun, *Deep Equilibrium Models*,
# NeurIPS 2019). Here it separates two interleaved half circles. The page trains it, and then looks
# at the evidence that comes with every solve: a residual and a step count for each sample.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import solvers
from implicit import FixedPointLayer, cached_weights, spectral_normalise

torch.manual_seed(0)


def two_moons(count):
    """Points on two half circles with noise, and the half circle that each belongs to."""
    label = torch.arange(count) % 2
    angle = torch.pi * torch.rand(count)
    x = torch.where(label == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(label == 0, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1) + 0.1 * torch.randn(count, 2), label


# %% [markdown]
# `FixedPointLayer` makes a layer of any module that maps a state `y` and an input `x` to a new
# state. Plain training could make the map expansive, so that no fixed point can be found;
# `spectral_normalise` keeps the norm of W at 0.95 or below. `cached_weights` computes the
# normalised weight once per forward pass.


# %%
class Cell(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.inner = nn.Linear(size, size)

    def forward(self, y, x):
        return torch.tanh(self.inner(y) + x)


class Classifier(nn.Module):
    def __init__(self, size=24):
        super().__init__()
        self.embed, self.decode = nn.Linear(2, size), nn.Linear(size, 2)
        cell = spectral_normalise(Cell(size), bound=0.95)
        self.layer = FixedPointLayer(cell, solver=solvers.Anderson(rtol=1e-4))

    def forward(self, points):
        x = self.embed(points)
        with cached_weights(self.layer):
            s = self.layer(torch.zeros_like(x), x)
        return self.decode(s.value), s


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
points, labels = two_moons(256)
for _ in range(150):
    logits, s = model(points)
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# On points that the model has not seen. The layer does not raise where a sample fails, since an
# unconverged step is normal in training, so that the share of converged samples belongs beside the
# accuracy.

# %%
test_points, test_labels = two_moons(1000)
with torch.no_grad():
    logits, s = model(test_points)
right = logits.argmax(1) == test_labels
print(f"accuracy {right.float().mean():.1%}, loss in training {loss.item():.4f}")
print(f"converged {s.converged.float().mean():.0%}, largest residual {s.residual.max():.1e}")
print(f"steps from {s.num_steps.min()} to {s.num_steps.max()}")

# %%
figure, (left, middle, last) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.scatter(*test_points.T, c=logits.softmax(1)[:, 1], cmap="coolwarm", s=8)
left.set_title("probability of the second class")
drawn = middle.scatter(*test_points.T, c=s.residual.log10(), s=8)
figure.colorbar(drawn, label="log10 of the residual")
middle.set_title("residual of each sample")
last.hist(s.num_steps.numpy(), bins=range(s.num_steps.min(), s.num_steps.max() + 2), align="left")
last.set(xlabel="steps to the fixed point", ylabel="samples")
plt.show()

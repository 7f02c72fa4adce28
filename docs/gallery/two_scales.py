# %% [markdown]
# # A state with two resolutions
#
# The state of a fixed point may be any nested structure of tensors. Here it is a dictionary with a
# fine signal and a coarse one, which inform each other until both agree, as in multiscale deep
# equilibrium models (S. Bai, V. Koltun, J. Z. Kolter, *Multiscale Deep Equilibrium Models*,
# NeurIPS 2020). The task: find the steps of a noisy signal. What is noise shows only over long
# distances, which the coarse signal spans.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import avg_pool1d, interpolate

import solvers
from implicit import FixedPointLayer, cached_weights, spectral_normalise, spectral_radius

length, ratio, width = 96, 8, 12


def signals(count):
    """Piecewise constant signals with three levels, and the same with noise."""
    edges = torch.rand(count, 2, 1) * length
    level = (torch.arange(length) > edges).sum(1, keepdim=True)
    clean = torch.randn(count, 3).gather(1, level[:, 0])[:, None]
    return clean + 1.5 * torch.randn_like(clean), clean


# %% [markdown]
# The map takes the dictionary and returns one of the same structure. Each signal hears its own
# neighbours and the other signal, averaged or stretched to its own length. `spectral_normalise`
# bounds the weight of each convolution as a matrix; the convolution itself may have a larger norm,
# so that the page measures the spectral radius at the solution.


# %%
class Cell(nn.Module):
    def __init__(self, coarse):
        super().__init__()
        self.coarse = coarse
        self.fine_fine = nn.Conv1d(width, width, 3, padding=1)
        self.coarse_coarse = nn.Conv1d(width, width, 3, padding=1)
        self.up, self.down = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)

    def forward(self, y, x):
        fine, coarse = self.fine_fine(y["fine"]) + x, self.coarse_coarse(y["coarse"])
        if self.coarse:
            fine = fine + self.up(interpolate(y["coarse"], scale_factor=ratio)) / ratio**0.5
            coarse = coarse + self.down(avg_pool1d(y["fine"], ratio)) * ratio**0.5
        return {"fine": torch.tanh(fine), "coarse": torch.tanh(coarse)}


class Denoiser(nn.Module):
    def __init__(self, coarse):
        super().__init__()
        self.embed, self.decode = nn.Conv1d(1, width, 5, padding=2), nn.Conv1d(width, 1, 1)
        cell = spectral_normalise(Cell(coarse), bound=0.47)
        self.layer = FixedPointLayer(cell, solver=solvers.Anderson(rtol=1e-3))

    def forward(self, noisy):
        x = self.embed(noisy)
        start = {"fine": torch.zeros_like(x), "coarse": torch.zeros_like(x[..., ::ratio])}
        with cached_weights(self.layer):
            s = self.layer(start, x)
        return self.decode(s.value["fine"]), s


# Two networks with equal training, one of which may not use its coarse signal.
test, shown = signals(400), {}
torch.manual_seed(0)
for name, coarse in (("fine only", False), ("both scales", True)):
    model = Denoiser(coarse)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        noisy, clean = signals(32)
        loss = (model(noisy)[0] - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shown[name], s = model(test[0])
        x = model.embed(test[0])
    radius = spectral_radius(model.layer.module, s.value, x).radius.max()
    error = (shown[name] - test[1]).square().mean()
    print(f"{name}: mean squared error {error:.3f}, radius {radius:.2f}. {s.describe()}")
print(f"the noise itself: {(test[0] - test[1]).square().mean():.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
left.plot(test[0][1, 0], ".", color="lightgrey", label="noisy")
left.plot(test[1][1, 0], "k", label="truth")
for name, found in shown.items():
    left.plot(found[1, 0], label=name)
left.legend()
right.hist(s.residual.log10(), bins=40)
right.set_xlabel("log10 of a sample's residual, of both signals together")
plt.show()

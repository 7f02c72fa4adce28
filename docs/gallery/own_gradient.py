# %% [markdown]
# # A gradient of your own
#
# The exact gradient through a fixed point multiplies the cotangent v of the solution with (I -
# J^T)^-1, J = df/dy. A *backward mode* puts something else in its place. This page adds a
# discounted series,
#
# $$ u = v + \mathrm{decay}\, J^\top v + \dots + (\mathrm{decay}\, J^\top)^K v, $$
#
# which stays bounded where the plain series (`neumann`, decay 1) does not, and measures what that
# costs.

# %%
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch

import implicit
import solvers

# %% [markdown]
# One method is needed, `adjoint`. It is given v as a list with a tensor for each leaf of the
# state, and `product`, which multiplies with J^T (in forward mode, with J). A mode also declares
# its error to the suite of tests: `in_place_of_inverse` is the matrix that stands where the exact
# gradient has (I - J)^-1, and `bias` bounds the relative error on maps of norm 0.6.


# %%
@implicit.register("discounted")
@dataclass(frozen=True, kw_only=True)
class Discounted(implicit.AdjointMode):
    decay: float = 0.9
    terms: int = 8

    @property
    def bias(self):  # the discount, and the end of the series
        a, end = 0.6 * self.decay, (0.6 * self.decay) ** (self.terms + 1)
        return ((1 - self.decay) * 0.6 + 1.6 * end) / (1 - a)

    def in_place_of_inverse(self, jacobian):
        eye = total = torch.eye(len(jacobian), dtype=jacobian.dtype)
        for _ in range(self.terms):
            total = eye + self.decay * jacobian @ total
        return total

    def adjoint(self, product, v, context):
        u = list(v)
        for _ in range(self.terms):  # Horner's rule
            u = [a + self.decay * b for a, b in zip(v, product(u), strict=True)]
        return u


implicit.testing.check("discounted")
print("The suite passes.")

# %% [markdown]
# A linear map whose radius can be set; the exact gradient is known by algebra. Below a radius of 1
# the discount costs accuracy. Above it, where `anderson` still finds the solution, the plain
# series explodes, while the discounted one keeps more of the direction.

# %%
torch.manual_seed(0)
n = 32
W = torch.randn(n, n, dtype=torch.float64)
W = W / torch.linalg.eigvals(W).abs().max()
x, v = torch.randn(2, 16, n, dtype=torch.float64)
radii = torch.linspace(0.1, 1.5, 15, dtype=torch.float64)
modes = {
    "exact": "exact",
    "jacobian_free": "jacobian_free",
    "neumann, 16 terms": implicit.Neumann(terms=16),
    "discounted, decay 0.7": Discounted(decay=0.7, terms=16),
}


def gradient(mode, radius):
    leaf = x.clone().requires_grad_()
    how = {"solver": solvers.Anderson(rtol=1e-9, history=n), "max_steps": 200, "backward": mode}
    s = implicit.fixed_point(lambda y, x: radius * y @ W.T + x, 0 * x, leaf, **how)
    return torch.autograd.grad(s.value, leaf, v)[0]


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for name, mode in modes.items():
    errors, cosines = [], []
    for radius in radii.tolist():
        true = torch.linalg.solve(torch.eye(n) - radius * W.T, v.T).T
        found = gradient(mode, radius)
        errors.append(((found - true).norm() / true.norm()).item())
        cosines.append(torch.cosine_similarity(found, true).mean().item())
    shown = [f"{errors[i]:.0e} at {radii[i]:.1f}" for i in (4, 8, 14)]
    print(f"{name:22} error", ", ".join(shown))
    left.semilogy(radii, errors, label=name)
    right.plot(radii, cosines, label=name)
left.set(xlabel="spectral radius", ylabel="relative error")
right.set(xlabel="spectral radius", ylabel="mean cosine to the true gradient")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# # An optimiser of deepinv, solved and differentiated
#
# [deepinv](https://deepinv.github.io) states an image reconstruction as an iteration: a step on the
# data, then one on the prior. `implicit.contrib.DeepinvStep` makes that iteration a map, so that
# every solver and gradient here works on it. Here a blur A mixes point sources x on a grid, and
# proximal gradient descent finds the x that minimises
#
# $$ \tfrac{1}{2} \lVert A x - b \rVert^2 + \lambda \lVert x \rVert_1. $$

# %%
import matplotlib.pyplot as plt
import torch

import solvers
from implicit import Exact, fixed_point
from implicit.contrib import DeepinvStep

try:
    import deepinv
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build
    raise SystemExit(f"This page needs deepinv: pip install -e '.[deepinv]' ({error}).") from None

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
size, counts = 24, (2, 4, 8, 16, 32, 64)
order = torch.rand(6, size * size).argsort(1).argsort(1).view(6, 1, size, size)
truth = (0.5 + torch.rand(order.shape)) * (order < torch.tensor(counts).view(6, 1, 1, 1))
kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=(0.8, 0.8)).double()
physics = deepinv.physics.BlurFFT(img_size=(1, size, size), filter=kernel)
b = physics(truth) + 0.01 * torch.randn_like(truth)


def pgd(strength=0.01, thres_conv=1e-5, **options):
    return deepinv.optim.PGD(
        deepinv.optim.L2(), deepinv.optim.L1Prior(), lambda_reg=strength, stepsize=1.0,
        max_iter=2000, early_stop=True, thres_conv=thres_conv, **options,
    ).double()  # fmt: skip


# %% [markdown]
# deepinv's own loop, without and with its Anderson acceleration, beside solvers of this library;
# one more step from what each returns measures the residual of every image. deepinv stops all
# images together, by the mean of their changes, and gives no verdict. Steps of each image:

# %%
step, steps, found = DeepinvStep(pgd(), physics), {}, {}
ridge = deepinv.optim.AndersonAccelerationConfig(eps=1e-8)  # absolute; by default 0.1
for name, how in {"deepinv": False, "its Anderson": True, "ridge 1e-8": ridge}.items():
    found[name], metrics = pgd(anderson_acceleration=how)(b, physics, compute_metrics=True)
    steps[name] = [len(metrics["residual"][0])] * len(b)
for name in ("picard", "anderson", "broyden"):
    solver = solvers.get_solver(name, rtol=1e-5)
    s = solvers.solve(step, step.start(b), b, solver=solver, max_steps=2000)
    found[name], steps[name] = s.value[0], s.num_steps.tolist()
for name, x in found.items():
    change = (step((x,), b)[0] - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    print(f"{name:12} {steps[name]}, residual up to {change.max():.0e}")

# %% [markdown]
# How should $\lambda$ be chosen? The derivative of the error comes through the solution. That with
# respect to the stepsize must be zero: it changes the way, and not where the way ends. deepinv's
# equilibrium gradient makes 50 backward steps unless told otherwise, too few for this blur.


# %%
def derivatives(strength, DEQ=None):
    """Lambda, the error, and its derivatives through `fixed_point` or deepinv's own DEQ."""
    model = pgd(strength, 1e-10, trainable_params=["lambda", "stepsize"], unfold=True, DEQ=DEQ)
    step = DeepinvStep(model, physics)
    how = {"solver": solvers.Broyden(rtol=1e-10, atol=0), "max_steps": 3000}
    s = fixed_point(step, step.start(b), b, backward=Exact(**how), **how)
    x = model(b, physics) if DEQ else s.value[0]
    numbers = [model.params_algo[name][0] for name in ("lambda", "stepsize")]
    error = (x - truth).square().mean()
    return numbers[0].item(), error.item(), *torch.autograd.grad(error, numbers)


deeper = deepinv.optim.DEQConfig(max_iter_backward=2000)
for name, deq in {"fixed_point": None, "DEQ": True, "DEQ, 2000 steps": deeper}.items():
    _, _, slope, other = derivatives(0.01, deq)
    print(f"{name:15} d error / d lambda {slope:.6f}, d error / d stepsize {other:.0e}")
(one, high, *_), (two, low, *_) = derivatives(0.01 + 3e-6), derivatives(0.01 - 3e-6)
print(f"by differences  d error / d lambda {(high - low) / (one - two):.6f}")

# %%
figure, (one, two, left, right) = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
for ax, name, image in ((one, "measured", b), (two, "reconstructed", found["broyden"])):
    ax.imshow(image[4, 0])
    ax.set(title=name, xticks=[], yticks=[])
for name, of_images in steps.items():
    left.plot([str(count) for count in counts], of_images, ".-", label=name)
left.set(xlabel="sources in the image", ylabel="steps", yscale="log")
left.legend(fontsize="x-small")
for strength in (0.005, 0.01, 0.015, 0.02, 0.025):
    at, error, slope, _ = derivatives(strength)
    right.plot([at - 2e-3, at, at + 2e-3], error + slope * torch.tensor([-2e-3, 0, 2e-3]), ".-")
right.set(xlabel="lambda", ylabel="error, and its slope")
plt.show()

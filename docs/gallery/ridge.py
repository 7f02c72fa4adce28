# %% [markdown]
# # A hyperparameter by its own gradient
#
# Ridge regression has a penalty p that training data cannot choose: the smallest training loss is
# at p = 0. A validation set can. Its loss depends on p by way of the weights,
#
# $$
# w = w - \mathrm{step} \cdot \Big(\frac{A^\top (A w - b)}{m} + p\, w\Big),
# $$
#
# the fixed point of gradient descent. `backward="exact"` differentiates the equation, not the
# descent (F. Pedregosa, *Hyperparameter optimization with approximate gradient*, ICML 2016).

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

torch.manual_seed(0)
features = 40
truth = torch.randn(features, dtype=torch.float64) * (torch.arange(features) < 8)


def draw(count):
    A = torch.randn(count, features, dtype=torch.float64)
    return A, A @ truth + 2.0 * torch.randn(count, dtype=torch.float64)


(A, b), (A_val, b_val) = draw(60), draw(400)
curvature, moment = A.T @ A / len(A), A.T @ b / len(A)
largest = torch.linalg.eigvalsh(curvature)[-1]


def descent(log_p, solver):
    p = log_p.exp()

    def f(w):
        return w - (curvature @ w - moment + p * w) / (largest + p)

    return implicit.fixed_point(
        f, torch.zeros(features, dtype=torch.float64), solver=solver, batch_dims=0, max_steps=20000
    )


log_p = torch.tensor(-4.0, dtype=torch.float64)
picard, anderson = (S(rtol=1e-10, atol=1e-12) for S in (solvers.Picard, solvers.Anderson))
for name, solver in (("gradient descent", picard), ("with a window", anderson)):
    print(f"{name:16} {descent(log_p, solver).num_evals:5} steps to the same weights")

# %% [markdown]
# The hypergradient against the closed form of ridge regression, and then ten steps of Newton's
# method on log p, with the second derivative from `torch.func` as well.


# %%
def loss(w):
    return (A_val @ w - b_val).square().mean()


def by_descent(log_p):
    return loss(descent(log_p, anderson).value)


def in_closed_form(log_p):
    eye = torch.eye(features, dtype=torch.float64)
    return loss(torch.linalg.solve(curvature + log_p.exp() * eye, moment))


slope, bend = torch.func.grad(by_descent), torch.func.grad(torch.func.grad(by_descent))
exact = torch.func.grad(in_closed_form)
print(f"first derivative  {slope(log_p):.8f}, in closed form {exact(log_p):.8f}")
print(f"second derivative {bend(log_p):.8f}, in closed form {torch.func.grad(exact)(log_p):.8f}")

path = [log_p]
for _ in range(10):
    step = -slope(path[-1]) / bend(path[-1]).abs()  # downhill, whatever the sign of the bend
    path.append(path[-1] + step.clamp(-1, 1))
print(f"p = {path[-1].exp():.5f} with slope {slope(path[-1]):.0e}")
print(f"validation loss {by_descent(path[0]):.4f} -> {by_descent(path[-1]):.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
grid = torch.linspace(-6, 3, 100, dtype=torch.float64)
left.plot(grid.exp(), [in_closed_form(t) for t in grid], label="closed form")
left.plot([t.exp() for t in path], [by_descent(t) for t in path], "o-", label="steps on log p")
left.set(xscale="log", xlabel="penalty p", ylabel="validation loss")
left.legend()
right.plot(truth, "k_", ms=8, label="truth")
for t in (path[0], path[-1]):
    right.plot(descent(t, anderson).value, ".", label=f"p = {t.exp():.3f}")
right.set(xlabel="feature", ylabel="weight")
right.legend()
plt.show()

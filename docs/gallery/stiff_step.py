# %% [markdown]
# # An implicit step of a stiff equation
#
# Van der Pol's oscillator with a large parameter,
#
# $$ u' = w, \qquad w' = \mu (1 - u^2)\, w - u, \qquad \mu = 1000, $$
#
# creeps for a long time. Its fast direction relaxes within a thousandth of a unit of time, which
# bounds the steps of every explicit method. Backward Euler has no such bound, but each step is an
# equation for the new state y,
#
# $$ y = y_{\mathrm{old}} + h\, r(y), $$
#
# a fixed point whose Jacobian h dr/dy is huge. Source: E. Hairer, G. Wanner, *Solving Ordinary
# Differential Equations II*, 1996, sections IV.1 and IV.8.

# %%
import matplotlib.pyplot as plt
import torch
from scipy.integrate import solve_ivp

import solvers
from implicit import fixed_point


def rate(y, mu):
    u, w = y.unbind(-1)
    return torch.stack([w, mu * (1 - u**2) * w - u], -1)


mu = torch.tensor(1000.0, dtype=torch.float64)
# On the slow branch, where mu (1 - u^2) w = u.
start = torch.tensor([[2.0, -2.0 / 3000]], dtype=torch.float64)

# %% [markdown]
# One step of length 4, with four solvers. Plain iteration diverges. `anderson` and `broyden` work
# with differences of past states, two of which span a state of two entries, so that they succeed
# here; Newton's method, with GMRES for its linear systems, does not depend on a small state.

# %%
for name in ("picard", "anderson", "broyden", "newton_krylov"):
    s = solvers.solve(
        lambda y: start + 4.0 * rate(y, mu), start, solver=name, max_steps=100, throw=False
    )
    verdict = solvers.Result(s.result.item()).name
    print(f"{name:14} {verdict:10} residual {s.residual.item():8.1e} after {s.num_evals} calls")

# %% [markdown]
# The whole trajectory by `fixed_point`, whose value carries a gradient: the state at the end can
# be differentiated with respect to mu, through all steps, and no iteration is recorded.

# %%
newton = solvers.NewtonKrylov(rtol=1e-11, atol=1e-13)


def trajectory(mu, count, end=600.0):
    """States at `count` + 1 equidistant times, shape (count + 1, 2), and the calls per step."""
    h, states, calls = end / count, [start], []
    for _ in range(count):

        def f(y, old):
            return old + h * rate(y, mu)

        s = fixed_point(f, states[-1].detach(), states[-1], solver=newton)
        states.append(s.value)
        calls.append(s.num_evals)
    return torch.cat(states), calls


exact = solve_ivp(
    lambda t, y: rate(torch.tensor(y), mu).numpy(),
    (0, 600), start[0].numpy(), method="Radau", rtol=1e-10, atol=1e-12, dense_output=True,
)  # fmt: skip
results = {count: trajectory(mu, count) for count in (75, 150, 300)}
for count, (states, calls) in results.items():
    error = (states[-1, 0] - exact.y[0, -1]).abs().item()
    print(f"{count:4} steps: error {error:.2e} at the end, {sum(calls) / count:.1f} calls a step")

# %% [markdown]
# The error halves with the step, as it should for a method of order one. The derivative:

# %%
leaf = mu.clone().requires_grad_()
(slope,) = torch.autograd.grad(trajectory(leaf, 75)[0][-1, 0], leaf)
above, below = (trajectory(mu + shift, 75)[0][-1, 0] for shift in (0.5, -0.5))
print(f"du/dmu = {slope.item():.8f}, by central differences {(above - below).item():.8f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
left.plot(exact.t, exact.y[0], "k", label="SciPy's Radau")
for count, (states, _) in results.items():
    times = torch.linspace(0, 600, count + 1)
    left.plot(times, states[:, 0], ".", ms=3, label=f"backward Euler, {count} steps")
    right.semilogy(times[1:], abs(states[1:, 0].numpy() - exact.sol(times[1:].numpy())[0]))
left.set(xlabel="t", ylabel="u")
left.legend()
right.set(xlabel="t", ylabel="error of u")
plt.show()

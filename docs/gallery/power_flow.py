# %% [markdown]
# # Power flow of five buses, and the load that breaks it
#
# Bus 0 of an electricity grid holds its voltage, the others draw a given power S. With the
# admittance matrix Y, their complex voltages V solve
#
# $$ V = w + Y_{LL}^{-1} \, \overline{S / V}, \qquad w = -Y_{LL}^{-1} Y_{L0} V_0, $$
#
# which is a fixed point, known as the implicit Z-bus method. The lines and loads are those of G.
# W. Stagg and A. H. El-Abiad, *Computer Methods in Power System Analysis*, 1968, chapter 8. If a
# load is too large the equation has no solution at all, which no solver can mend: the page asks a
# batch of scenarios which of them this concerns, and relies on a verdict for each.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

# From, to, resistance, reactance, half of the line's charging admittance.
lines = [
    (0, 1, 0.02, 0.06, 0.030), (0, 2, 0.08, 0.24, 0.025), (1, 2, 0.06, 0.18, 0.020),
    (1, 3, 0.06, 0.18, 0.020), (1, 4, 0.04, 0.12, 0.015), (2, 3, 0.01, 0.03, 0.010),
    (3, 4, 0.08, 0.24, 0.025),
]  # fmt: skip
Y = torch.zeros(5, 5, dtype=torch.complex128)
for i, j, r, x, charging in lines:
    admittance = 1 / complex(r, x)
    Y[i, j] -= admittance
    Y[j, i] -= admittance
    for bus in (i, j):
        Y[bus, bus] += admittance + 1j * charging
Z = torch.linalg.inv(Y[1:, 1:])
w = -(Z @ Y[1:, 0]) * 1.06
# Power that flows into the grid, in units of 100 MVA: generation minus load.
S = torch.tensor([0.2 + 0.2j, -0.45 - 0.15j, -0.4 - 0.05j, -0.6 - 0.1j], dtype=torch.complex128)


def f(V, S):
    return w + (S / V).conj() @ Z.T


tight = solvers.Anderson(rtol=1e-11, atol=1e-12)
s = solvers.solve(f, torch.ones(1, 4, dtype=torch.complex128), S[None], solver=tight)
for bus, V in enumerate(s.value[0].tolist(), 1):
    print(f"bus {bus}: {V.real:.5f} {V.imag:+.5f}j")
V = torch.cat([torch.full((1,), 1.06, dtype=torch.complex128), s.value[0]])
print(f"largest mismatch of power: {((V * (Y @ V).conj())[1:] - S).abs().max().item():.0e}")

# %% [markdown]
# Scenarios: the load of one bus is multiplied, for each loaded bus and each of 145 factors. All of
# them are one batch, in which every scenario stops by itself, and the impossible ones harm no
# other. The last factor that has a solution is the loading limit of that bus.

# %%
factors = torch.linspace(1, 10, 145, dtype=torch.float64)
loaded = [1, 2, 3]  # positions in S of the buses with a load
scale = torch.ones(len(loaded), len(factors), 4, dtype=torch.float64)
for row, bus in enumerate(loaded):
    scale[row, :, bus] = factors
cases = scale * S
scenarios = cases.flatten(0, 1)
start = torch.ones_like(scenarios)
for solver in (tight, solvers.NewtonKrylov(rtol=1e-9)):
    s = solvers.solve(f, start, scenarios, solver=solver, max_steps=300, throw=False)
    solved = s.converged.reshape(len(loaded), -1)
    limits = [round(factors[ok].max().item(), 3) for ok in solved]
    print(type(solver).__name__, "finds the largest factors", limits)

# %% [markdown]
# The limits, of buses 2, 3 and 4 in this order, do not depend on the solver. How near one is shows
# in the gradient, too: the derivative of a voltage with respect to the load at its bus grows
# without bound towards the limit.


# %%
def voltage(S, bus=3):
    s = implicit.fixed_point(f, torch.ones_like(S), S, solver=tight, max_steps=300)
    return s.value[:, bus].abs()


at = cases[2, solved[2]].requires_grad_()
(slope,) = torch.autograd.grad(voltage(at).sum(), at)
push = torch.tensor([0, 0, 0, 1e-5])
difference = (voltage(at.detach() + push) - voltage(at.detach() - push))[:-1] / 2e-5
for i in (0, len(difference) - 1):
    print(f"at {factors[i]:.2f}: {slope[i, 3].real:.5f}, by differences {difference[i]:.5f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for row, bus in enumerate(loaded):
    V = voltage(cases[row, solved[row]], bus)
    left.plot(factors[solved[row]], V, label=f"bus {bus + 1}")
left.set(xlabel="factor of the load", ylabel="voltage at the loaded bus")
left.legend()
right.semilogy(factors[solved[2]], slope[:, 3].real)
right.set(xlabel="factor of the load of bus 4", ylabel="d voltage / d active power")
plt.show()

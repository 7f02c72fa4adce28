# %% [markdown]
# # A self-consistent field
#
# Electrons on a chain of sites repel each other. In the mean field picture each moves in the
# potential that the density n of all of them makes, and the density is that of the levels which
# they fill:
#
# $$ n = \mathrm{diag}\, P(H(n)), \qquad H(n) = H_0 + U\, \mathrm{diag}(n), \qquad
# P(H) = \frac{1}{1 + \exp((H - \mu) / T)}. $$
#
# P is a function of a matrix, by its eigenvectors. Iterating the equation often fails because
# charge sloshes from side to side; mixing past densities is the standard remedy (P. Pulay,
# *Convergence acceleration of iterative sequences: the case of SCF iteration*, 1980), and is
# Anderson's method.

# %%
import matplotlib.pyplot as plt
import torch

import implicit
import solvers

torch.manual_seed(0)
sites, mu, T = 40, 0.5, 0.1
hopping = torch.diag(-torch.ones(sites - 1, dtype=torch.float64), 1)
disorder = 0.6 * torch.randn(sites, dtype=torch.float64)


def density(n, potential, U):
    """The density of the filled levels in the field of the density `n`."""
    H = hopping + hopping.T + torch.diag_embed(potential + U * n)
    energies, levels = torch.linalg.eigh(H)
    return (levels.square() * torch.sigmoid((mu - energies) / T)[..., None, :]).sum(-1)


# %% [markdown]
# A batch with one sample per strength U of the repulsion. It is an argument of the map, so that
# each sample stops on its own.

# %%
U = torch.tensor([[0.5], [1.0], [2.0], [4.0], [8.0]], dtype=torch.float64)
field = disorder.expand(len(U), -1)
start = torch.full((len(U), sites), 0.5, dtype=torch.float64)
print("steps to self-consistency, for U =", *[f"{u:g}" for u in U.flatten().tolist()])
tight = {"rtol": 1e-9, "atol": 1e-10}
anderson = solvers.Anderson(**tight)
picard, damped = solvers.Picard(**tight), solvers.Picard(**tight, damping=0.7)
candidates = {"picard": picard, "picard, damped": damped, "anderson": anderson}
traces = {}
for name, solver in candidates.items():
    s = solvers.solve(density, start, field, U, solver=solver, max_steps=300, throw=False)
    cells = [f"{n:5}" if ok else "    -" for n, ok in zip(s.num_steps, s.converged, strict=True)]
    print(f"{name:15}", *cells)
    traces[name] = solvers.trace(density, start, field, U, solver=solver, max_steps=300)

# %% [markdown]
# A dash stands for a sample that failed. The radius of the Jacobian at the solution explains it:
# plain iteration needs it below 1.

# %%
s = implicit.fixed_point(density, start, field, U, solver=anderson, max_steps=300)
radius = implicit.spectral_radius(density, s.value, field, U, num_steps=sites).radius
print("spectral radius at the solution:", *[f"{r:.2f}" for r in radius.tolist()])

# %% [markdown]
# **Response.** How does the density at one site answer to the potential at every other? The
# gradient of the self-consistent density has the screening by all electrons in it; the derivative
# of the map alone has not.

# %%
site, chosen = sites // 2, 3


def answer(potential):
    one = start[chosen, None], potential, U[chosen, None]
    return implicit.fixed_point(density, *one, solver=anderson).value[0, site]


at = field[chosen, None].clone().requires_grad_()
(screened,) = torch.autograd.grad(answer(at), at)
fixed = s.value[chosen, None].detach()
(bare,) = torch.autograd.grad(density(fixed, at, U[chosen, None])[0, site], at)
push = torch.zeros_like(at)
push[0, site] = 1e-4
difference = (answer(at.detach() + push) - answer(at.detach() - push)).item() / 2e-4
print(f"dn/dv at the site: {screened[0, site]:.7f}, by differences {difference:.7f}")
print(f"without screening: {bare[0, site]:.7f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for name, trace in traces.items():
    left.semilogy(trace.residual[:120, chosen], label=name)
left.set(xlabel="calls of the map", ylabel=f"residual at U = {U[chosen].item():g}")
right.plot(bare[0], label="without screening")
right.plot(screened[0], label="self-consistent")
right.set(xlabel="site whose potential changes", ylabel=f"change of the density at site {site}")
left.legend()
right.legend()
plt.show()

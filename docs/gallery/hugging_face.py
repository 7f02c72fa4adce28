# %% [markdown]
# # A layer of a Hugging Face model, replaced
#
# This page replaces one block of a tiny GPT-2, with random weights and nothing to download, by the
# equilibrium
#
# $$ y = h + \mathrm{gain} \cdot \big(\mathrm{block}(y) - y\big), $$
#
# where h is what the block is given, and asks whether the solve converges, whether the gradient is
# right, and whether the model still is causal.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import solvers
from implicit import fixed_point

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    raise SystemExit("This page needs transformers: pip install -e '.[lm]'.") from None

torch.manual_seed(0)
sizes = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}
others = {"use_cache": False, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0}
model = GPT2LMHeadModel(GPT2Config(**sizes, **others)).double()
model.eval()  # no dropout: a map that changes by chance has no fixed point

# %% [markdown]
# The tokens of a text influence each other, and later ones must not influence earlier ones. With
# `batch_dims=2` each token is a sample with a verdict and mixing coefficients of its own, and
# `independent=False` says that the samples are coupled.


# %%
class Equilibrium(nn.Module):
    def __init__(self, block, gain=0.5, rtol=1e-3, batch_dims=2):
        super().__init__()
        self.block, self.gain, self.batch_dims = block, gain, batch_dims
        self.solver = solvers.Anderson(rtol=rtol, atol=0.1 * rtol)

    def forward(self, h, *args, **kwargs):
        how = {"batch_dims": self.batch_dims, "independent": False, "max_steps": 80, "throw": False}
        self.solution = fixed_point(
            lambda y: h + self.gain * (self.block(y, *args, **kwargs) - y), h.detach(),
            solver=self.solver, **how,
        )  # fmt: skip
        return self.solution.value


block, tokens = model.transformer.h[1], torch.randint(64, (8, 32))
later = tokens.clone()
later[:, 20:] = torch.randint(64, (8, 12))
for name, batch_dims in {"sequence": 1, "token": 2}.items():
    model.transformer.h[1] = layer = Equilibrium(block, batch_dims=batch_dims)
    with torch.no_grad():
        logits, steps = model(tokens).logits, layer.solution.num_steps
        print(f"a verdict per {name}: {layer.solution.describe()}")
        leak = (model(later).logits - logits)[:, :20].abs().max().item()
    print(f"changing the last tokens moves the logits of the first ones by {leak:.0e}")

# %% [markdown]
# With one set of coefficients per sequence, what comes later leaks into earlier tokens, within the
# tolerance. Per token, it does not at all. The gradient, against differences along a random
# direction of the block's weights:

# %%
model.transformer.h[1] = Equilibrium(block, rtol=1e-10)
weight = block.mlp.c_fc.weight


def loss():
    logits = model(tokens).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


(gradient,) = torch.autograd.grad(loss(), weight)
direction, ends = torch.randn_like(weight), []
with torch.no_grad():
    for step in (1e-5, -2e-5):
        weight += step * direction
        ends.append(loss().item())
print(f"{(gradient * direction).sum():.8f}, by differences {(ends[0] - ends[1]) / 2e-5:.8f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
figure.colorbar(left.imshow(steps), label="steps to the equilibrium")
left.set(xlabel="token", ylabel="text")
for gain in (0.25, 0.5, 1.0, 2.0):
    model.transformer.h[1] = layer = Equilibrium(block, gain, rtol=1e-6)
    with torch.no_grad():
        model(tokens)
    share = layer.solution.converged.double().mean()
    right.plot(layer.solution.num_steps.double().mean(0), label=f"{gain}: {share:.0%} converged")
right.set(xlabel="token", ylabel="mean steps")
right.legend(title="gain", loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

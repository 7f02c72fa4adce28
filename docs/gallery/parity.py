# %% [markdown]
# # Longer inputs: a solve that thinks for as long as they need
#
# For every position of a string of bits: is the number of ones up to there odd? A network that
# looks at neighbours needs more layers for longer strings. Three networks learn it from strings of
# up to 16 bits, and are tested on up to 128. The task is that of *Can You Learn an Algorithm?*
# (A. Schwarzschild et al., arXiv:2106.04537), and that equilibria carry over to harder inputs was
# found in *Path Independent Equilibrium Models* (C. Anil et al., arXiv:2211.09961).

# %%
from time import process_time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from implicit import FixedPointLayer
from models import LanguageSpec, TransformerLM

seed, steps, longest, width = 0, 300, 16, 48


def strings(count, length):
    bits = torch.randint(2, (count, length))
    return bits, bits.cumsum(1) % 2


# %% [markdown]
# The first network is the fixed point of one block with two convolutions, found in at most ten
# updates for each bit; its gradient goes through one call of the block. The second calls the block
# 16 times, and for longer strings once for each bit; its gradient goes through all calls.
# ([Four calls for each bit](../results/language.md) would be enough, but the network cannot know.)
# The third is a Transformer of four blocks with eight times as many parameters. Of the solves it is
# also printed how many converged, how many of these are wrong, and the mean number of updates.


# %%
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, y, x):
        return self.norm((y + self.second(torch.relu(self.first(y) + x))).mT).mT


class Loop(nn.Module):
    def __init__(self, solved):
        super().__init__()
        self.embed, self.block, self.decode = nn.Embedding(2, width), Block(), nn.Linear(width, 2)
        self.layer = FixedPointLayer(self.block, "picard", "jacobian_free") if solved else None

    def forward(self, bits):
        length, x = bits.shape[1], self.embed(bits).mT
        y = torch.zeros_like(x)
        if self.layer is None:
            for _ in range(max(length, longest)):
                y = self.block(y, x)
            return SimpleNamespace(logits=self.decode(y.mT), solution=None)
        solution = self.layer(y, x, max_steps=10 * length)
        return SimpleNamespace(logits=self.decode(solution.value.mT), solution=solution)


curves, lengths = {}, [16, 32, 64, 128]
spec = LanguageSpec(vocabulary=2, width=width, num_heads=4, backbone_blocks=3, refiner_blocks=1)
kinds = {"solved": (Loop, True), "16 calls": (Loop, False), "Transformer": (TransformerLM, spec)}
for name, (kind, options) in kinds.items():
    torch.manual_seed(seed)
    network, began = kind(options), process_time()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, 2 - 2 * i / steps))
    for _ in range(steps):
        bits, parity = strings(64, int(torch.randint(1, longest + 1, ())))
        optimizer.zero_grad()
        cross_entropy(network(bits).logits.flatten(0, 1), parity.flatten()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay.step()
    print(f"{name}: trained in {process_time() - began:.0f} s of processor time")
    for length in lengths:
        bits, parity = strings(100, length)
        with torch.no_grad():
            out = network(bits)
        right, solution = (out.logits.argmax(-1) == parity).all(1), out.solution
        curves.setdefault(name, []).append(right.sum())
        print(f"  {length:3} bits: {right.sum():3} of 100 strings right")
        if solution is not None:
            done, n = solution.converged, solution.num_steps.float().mean()
            print(f"    {done.sum()} converged, {(done & ~right).sum()} wrong; {n:.0f} updates")

# %%
for (name, counts), marker in zip(curves.items(), "osx", strict=True):
    plt.plot(lengths, counts, marker=marker, label=name)
plt.gca().set(xlabel="bits; 16 in training", ylabel="strings right, %", xticks=lengths)
plt.legend()
plt.show()

# %% [markdown]
# # A trained model, fine-tuned
#
# The package comes with a small language model that has read the source of Python's standard
# library. This page trains it further on text of another kind, and looks at what a change of
# weights may spoil: what the model knew before, and the convergence of its solves.

# %%
import argparse
import inspect
import textwrap

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

try:
    import tasks.lm

    writer = tasks.lm.load(device="cpu")
except (ImportError, ValueError):  # its tokenizer is in a package of its own
    raise SystemExit("This page needs tasks.lm: pip install -e '.[lm]'.") from None

torch.manual_seed(0)


def diary(lines):
    """Sales, whose sums are right."""
    people, goods = ("Ada", "Alan", "Emmy", "Grace", "Kurt", "Sofia"), ("apples", "books", "kites")
    draws = torch.randint(10**6, (lines, 5)).tolist()
    return "".join(
        f"{people[a % 6]} sold {2 + n % 8} {goods[g % 3]} to {people[b % 6]} at {2 + p % 8} "
        f"coins each, for {(2 + n % 8) * (2 + p % 8)} coins.\n" for a, b, g, n, p in draws
    )  # fmt: skip


def rows(text, length=97):
    ids = torch.tensor(writer.tokenizer.encode(text))
    return ids[: len(ids) // length * length].view(-1, length)


# %% [markdown]
# Losses on other texts of both kinds, with the solver and by the backbone's proposal alone
# (`max_steps=0`). Then 40 steps: once on the diary, once with as much of the old text mixed in.


# %%
def loss_of(model, ids, **how):
    out = model(ids[:, :-1], **how)
    return cross_entropy(out.logits.flatten(0, 1), ids[:, 1:].flatten()), out.solution


def report(name, model):
    for kind, ids in {
        "diary": rows(diary(100)),
        "Python": rows(inspect.getsource(textwrap)),
    }.items():
        with torch.no_grad():
            (solved, s), (proposal, _) = loss_of(model, ids), loss_of(model, ids, max_steps=0)
        losses[kind].append(solved.item())
        share = f"{s.converged.float().mean():.0%} converged"
        print(f"{name}, {kind}: loss {solved:.2f}, of the proposal {proposal:.2f}, {share}")


losses, curves = {"diary": [], "Python": []}, {}
new, old = rows(diary(1000)), rows(inspect.getsource(argparse))
report("before", writer.model)
for name in ("diary only", "with old text"):
    model = tasks.lm.load(device="cpu").model.train()
    optimizer, curves[name] = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(40):
        ids = new[torch.randint(len(new), (8,))]
        if name == "with old text":
            ids = torch.cat([ids[:4], old[torch.randint(len(old), (4,))]])
        loss, s = loss_of(model, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves[name].append(s.num_steps.float().mean().item())
    report(name, model.eval())
writer.model = model
print(writer.generate("Emmy sold", tokens=60, seed=0))

# %% [markdown]
# The new text is learnt in both runs, and every solve goes on to converge, in fewer steps than
# before. But the old text is forgotten, unless it is mixed in. The form of a line is learnt sooner
# than its sums: what such a model says is not to be trusted.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
for shift, (kind, values) in enumerate(losses.items()):
    left.bar(torch.arange(3) + 0.4 * shift, values, 0.4, label=kind)
left.set(xticks=[0.2, 1.2, 2.2], xticklabels=["before", *curves], ylabel="loss per token")
left.legend()
for name, steps in curves.items():
    right.plot(steps, label=name)
right.set(xlabel="training step", ylabel="mean steps to the fixed point")
right.legend()
plt.show()

# %% [markdown]
# # Internalisation: the proposal learns the fixed point
#
# An `Attractor` is trained on its fixed point alone: no loss is computed at the proposal. Yet both
# are read by the same head, and the gradient reaches the backbone through the proposal. The paper
# (*Solve the Loop*, arXiv:2605.12466) finds that language models so trained need no solver
# afterwards: their proposal is about as good as the fixed point. Here small models of characters
# are watched on their way there, with three backbones: attention, a GRU, and GPT-2 as the package
# `transformers` builds it.

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

from models import AttractorLM, LanguageSpec

try:
    from tasks.lm.config import LanguageConfig
    from tasks.lm.data import Batches, load_corpus
except ImportError:
    raise SystemExit("This page needs tasks.lm: pip install -e '.[lm]'.") from None

context = 64
config = LanguageConfig.of(vocabulary=257, context=context, max_bytes=1_000_000, batch_size=12)
corpus = load_corpus(config)  # what Python's own `help` shows, so that nothing is downloaded
batches = Batches(corpus, config)
held_out = corpus.held_out[: 64 * context + 1]
x, target = held_out[:-1].view(64, context), held_out[1:].view(64, context)
budgets = {"proposal alone": 0, "one step": 1, "fixed point": 16}


def loss_of(model, x, target, steps):
    out = model(x, max_steps=steps)
    return cross_entropy(out.logits.flatten(0, 1), target.flatten()), out.solution


# %% [markdown]
# Three blocks propose, one is solved. Now and then the held-out loss is measured with no step of
# the solver, with one, and at the fixed point.


# %%
def watch(mixer, steps=140, rate=4e-3):
    torch.manual_seed(0)
    spec = LanguageSpec(
        vocabulary=257, width=64, num_heads=4, backbone_blocks=3, mixer=mixer, context=context
    )
    model = AttractorLM(spec, solver="anderson", backward="jacobian_free")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    draws, rows = torch.Generator().manual_seed(0), []
    for step in range(steps + 1):
        if step % 20 == 0:
            with torch.no_grad():
                losses = [
                    loss_of(model, x, target, budget)[0].item() for budget in budgets.values()
                ]
            rows.append((step, losses))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, (steps + 1 - step) / (steps / 2))
        loss, solution = loss_of(model, *batches.batch(12, draws, 0.0), 16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{mixer:9}: " + ", ".join(f"{n} {v:.3f}" for n, v in zip(budgets, losses, strict=True)))
    print(f"           {solution.num_steps.float().mean():.1f} steps for each token")
    return rows


curves = {mixer: watch(mixer) for mixer in ("attention", "gru", "gpt2")}

# %% [markdown]
# Behind attention and the GRU, the proposal is as good as the fixed point to within a hundredth at
# every measurement: one could leave the solver out. GPT-2 ends in a norm of its own, and there the
# refiner does a part of the work, which takes it more steps: without it the loss is far higher. So
# measure it before you remove the solver;
# [the results](../results/language.md#one-rule-for-all-of-them) say how the loss depends on the
# length of the training.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
for ax, (mixer, rows) in zip(axes, curves.items(), strict=True):
    steps, losses = zip(*rows, strict=True)
    for name, values, style in zip(
        budgets, zip(*losses, strict=True), ("--", ":", "-"), strict=True
    ):
        ax.plot(steps, values, style, label=name)
    ax.set(title=f"backbone: {mixer}", xlabel="steps of training")
axes[0].set(ylabel="held-out loss (nats)", yscale="log")
axes[0].legend()
plt.show()

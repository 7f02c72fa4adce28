# %% [markdown]
# # A trained Transformer, retrofitted with an equilibrium
#
# A network that was trained without a solver can be given one afterwards. Here the last block of a
# small Transformer becomes the map of an Attractor: the blocks before it propose a state, and the
# block refines that to a fixed point. Both the retrofitted network and the untouched one are then
# trained for as many steps more, so that the comparison says what the equilibrium is worth.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

from models import AttractorLM, LanguageSpec, TransformerLM

try:
    from tasks.lm.config import LanguageConfig
    from tasks.lm.data import Batches, load_corpus
except ImportError:
    raise SystemExit("This page needs tasks.lm: pip install -e '.[lm]'.") from None

config = LanguageConfig.of(vocabulary=257, context=96, max_bytes=1_000_000, batch_size=12)
corpus = load_corpus(config)
batches = Batches(corpus, config)
held_out = corpus.held_out[: 48 * 96 + 1]
x, target = held_out[:-1].view(48, 96), held_out[1:].view(48, 96)


def loss_of(model, x, target, **how):
    out = model(x, **how)
    return cross_entropy(out.logits.flatten(0, 1), target.flatten()), out.solution


def train(model, steps, rate):
    optimizer, draws = torch.optim.AdamW(model.parameters(), lr=rate), torch.Generator()
    draws.manual_seed(steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / (steps / 2))
        loss, _ = loss_of(model, *batches.batch(12, draws, 0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


# %% [markdown]
# The Transformer has four blocks. In the Attractor the same weights serve: three blocks propose,
# and the last one is solved. What is new is that the proposal is added to the state before the
# block, and a gate per channel, which begins at a half and keeps the block's changes small.

# %%
torch.manual_seed(0)
spec = LanguageSpec(vocabulary=257, width=96, num_heads=4, backbone_blocks=3, refiner_blocks=1)
transformer = train(TransformerLM(spec), 160, 4e-3)
attractor = AttractorLM(spec, solver="anderson", backward="jacobian_free")
first, last = list(transformer.blocks)[:3], list(transformer.blocks)[3]
attractor.vocabulary.load_state_dict(transformer.vocabulary.state_dict())
for block, trained in zip(attractor.attractor.backbone, first, strict=True):
    block.load_state_dict(trained.state_dict())
(refiner,) = attractor.solving.module.blocks
new = refiner.load_state_dict(last.state_dict(), strict=False)
print("new weights:", new.missing_keys)


# %%
def report(name, model, **how):
    with torch.no_grad():
        loss, solution = loss_of(model.eval(), x, target, **how)
    rows[name] = loss.item()
    solved = "" if solution is None or how else (
        f", {solution.converged.float().mean():.1%} of tokens converged, "
        f"{solution.num_steps.float().mean():.1f} steps each"
    )  # fmt: skip
    print(f"{name}: held-out loss {loss:.3f}{solved}")
    model.train()


rows: dict[str, float] = {}
report("Transformer as trained", transformer)
report("Attractor before fine-tuning", attractor)
report("Transformer, trained on", train(copy.deepcopy(transformer), 80, 2e-3))
report("Attractor, fine-tuned", train(attractor, 80, 2e-3))
report("its proposal alone", attractor, max_steps=0)

# %% [markdown]
# The solve converges at once and costs little loss, and after fine-tuning the two are level: the
# equilibrium is not worth more than the last block was, in a training as short as this. Gained is a
# verdict for each token, and a solver that may be left out at a small price, as the last row shows;
# lost is the time of the solve.

# %%
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
axes.barh(list(rows), list(rows.values()), color=["0.6", "C1", "0.6", "C0", "C2"])
axes.set(xlabel="held-out loss (nats per byte)", xlim=(0.9 * min(rows.values()), None))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# # Training by Lightning, with the solver in the log
#
# A `LightningModule` holds a `FixedPointLayer` like any module. A training step does not fail where
# a solve does, so that two figures belong in the log beside the loss: the solver's steps, and the
# share of samples that have converged. Two spirals are told apart, with and without a penalty on J.

# %%
import logging
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from implicit import FixedPointLayer, jacobian_penalty

try:
    import lightning
except ImportError:
    raise SystemExit("This page needs lightning: pip install -e '.[integrations]'.") from None

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")  # of few workers, and of torch's own names


def spirals(count, seed):
    """Points on two spirals with noise, and the spiral that each belongs to."""
    chance = torch.Generator().manual_seed(seed)
    label, turn = torch.arange(count) % 2, 7 * torch.rand(count, generator=chance).sqrt()
    angle = turn + torch.pi * label
    points = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / 3
    return TensorDataset(points + 0.03 * torch.randn(count, 2, generator=chance), label)


# %% [markdown]
# `self.log_dict` takes the evidence of a solve as it takes a loss, and averages it over the epoch.


# %%
class Cell(nn.Linear):
    def forward(self, y, x):
        return torch.tanh(super().forward(y) + x)


class Classifier(lightning.LightningModule):
    def __init__(self, penalty, width=32):
        super().__init__()
        self.embed, self.decode = nn.Linear(2, width), nn.Linear(width, 2)
        self.layer = FixedPointLayer(Cell(width, width), "anderson", "phantom", max_steps=30)
        self.penalty = penalty

    def forward(self, points):
        x = self.embed(points)
        s = self.layer(torch.zeros_like(x), x)
        return self.decode(s.value), s, x

    def training_step(self, batch, _):
        logits, s, x = self(batch[0])
        loss, share = nn.functional.cross_entropy(logits, batch[1]), s.converged.float().mean()
        figures = {"loss": loss, "steps": s.num_steps.float().mean(), "converged": share}
        self.log_dict(figures, on_step=False, on_epoch=True)
        return loss + self.penalty * jacobian_penalty(self.layer.module, s.value, x)

    def validation_step(self, batch, _):
        self.log("accuracy", (self(batch[0])[0].argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Curves(lightning.Callback):  # in a run of yours a logger, such as CSVLogger
    def on_train_epoch_end(self, trainer, module):
        for name, value in trainer.callback_metrics.items():
            runs[module.penalty].setdefault(name, []).append(value.item())


names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
options = {"max_epochs": 30, **dict.fromkeys(names, False)}
runs = {0.0: {}, 1.0: {}}
for penalty, curves in runs.items():
    lightning.seed_everything(0, verbose=False)
    train, test = DataLoader(spirals(512, 1), 64, shuffle=True), DataLoader(spirals(512, 2), 512)
    lightning.Trainer("cpu", callbacks=[Curves()], **options).fit(Classifier(penalty), train, test)
    print(f"penalty {penalty}:", {n: round(sum(v[-5:]) / 5, 3) for n, v in curves.items()})

# %% [markdown]
# Means of the last five epochs. By its loss the run without a penalty is the better one. Yet many
# of its samples do not converge: their answer is where the solver happened to stop, and does not
# carry over to new points. The share of converged samples says so without a test set.

# %%
figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
for ax, name in zip(axes, ("loss", "steps", "converged", "accuracy"), strict=True):
    ax.plot(torch.tensor([curves[name] for curves in runs.values()]).T, label=[*runs])
    ax.set(xlabel="epoch", title=name, yscale="log" if name == "loss" else "linear")
axes[0].legend(title="penalty")
plt.show()

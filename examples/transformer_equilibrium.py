"""A Hugging Face language model with one of its layers replaced by that layer's equilibrium.

A pre-norm block computes h + d(h). Its equilibrium is the y with y = h + g * d(y): the block reads
its own output until the two agree. GPT-2 is built from a tiny random configuration (nothing is
downloaded) and trained on the bytes of the Python standard library, beside the same model with the
layer left as it was, for as many steps (not as much time). Source: S. Bai, J. Z. Kolter, V. Koltun,
Deep Equilibrium Models, NeurIPS 2019, whose transformer is one such layer.

    pip install -e '.[examples]'
    python -m examples.transformer_equilibrium

Prints held-out losses, the share of sequences that converged and their steps; draws them over
training. A sequence is one sample: all its tokens are solved for together.
"""

import os
import sysconfig
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import solvers
from implicit import Solution, fixed_point
from implicit.diagnostics.style import house_style, panels, save_figure

os.environ["HF_HUB_OFFLINE"] = "1"
CONTEXT, MEAN_OF = 48, 15
OUT = Path("results/examples/transformer_equilibrium.png")
ANDERSON = solvers.Anderson(rtol=1e-3)


class EquilibriumBlock(nn.Module):
    """Takes a block's place: the same weights, and the output is a fixed point."""

    def __init__(self, block: nn.Module, gain: float = 0.5):
        super().__init__()
        self.block, self.gain = block, gain
        self.solutions: list[Solution] = []

    def forward(self, h: Tensor, cache: None, *args: Any, **kwargs: Any) -> Tensor:
        """Solve from the block's input, of shape (batch, tokens, width)."""

        def f(y: Tensor, h: Tensor) -> Tensor:
            return h + self.gain * (self.block(y, cache, *args, **kwargs) - y)

        # The mask among `args` is for the whole batch: no sample may leave it.
        s = fixed_point(f, h.detach(), h, solver=ANDERSON, throw=False, compact=False)
        self.solutions.append(s)
        return s.value


def language_model() -> GPT2LMHeadModel:
    """Three layers on bytes. No dropout: a map that changes by chance has no fixed point."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=3, n_head=4, use_cache=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def train(model: GPT2LMHeadModel, steps: int) -> list[float]:
    """Losses of the steps, and at the end the one on the last tenth of the text."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
    data = torch.tensor(list(b"".join(file.read_bytes() for file in files)))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, border = [], len(data) * 9 // 10
    for step in range(steps + 1):
        first, last, count = (0, border, 16) if step < steps else (border, len(data), 256)
        start = torch.randint(first, last - CONTEXT, (count, 1), generator=generator)
        tokens = data[start + torch.arange(CONTEXT)]
        with torch.set_grad_enabled(step < steps):
            loss = model(input_ids=tokens, labels=tokens).loss
        losses.append(loss.item())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


def main(steps: int = 600, out: Path = OUT) -> dict:
    """Train both models and draw."""
    plain, changed = language_model(), language_model()
    changed.transformer.h[1] = block = EquilibriumBlock(changed.transformer.h[1])
    curves = {"the layer itself": train(plain, steps), "its equilibrium": train(changed, steps)}
    *others, last = block.solutions
    draw(curves, [s.num_steps.float().mean() for s in others], out)
    return {
        "held_out_loss": curves["its equilibrium"][-1],
        "held_out_loss_plain": curves["the layer itself"][-1],
        "converged": last.converged.float().mean().item(),
        "mean_steps": last.num_steps.float().mean().item(),
    }


@house_style()
def draw(curves: dict[str, list[float]], steps: list[Tensor], out: Path) -> None:
    """Losses, and the steps to the equilibrium."""
    figure, (left, right) = panels(2)
    for name, losses in curves.items():
        means = torch.tensor(losses[:-1]).unfold(0, MEAN_OF, 1).mean(1)
        left.plot(means, label=f"{name} (held out: {losses[-1]:.3f})")
    left.set(xlabel="training step", ylabel="nats per byte", title=f"(a) Loss, mean of {MEAN_OF}")
    left.legend()
    right.plot(steps)
    right.set(xlabel="training step", ylabel="solver steps", ylim=(0, None), title="(b) Mean steps")
    save_figure(figure, out)


if __name__ == "__main__":
    for key, value in tyro.cli(main).items():
        print(f"{key}: {value:.4g}")

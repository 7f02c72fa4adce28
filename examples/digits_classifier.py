"""A deep-equilibrium classifier on scikit-learn's handwritten digits.

The hidden state of the network is a fixed point, y = tanh(W y + U x + b), and a linear read-out
classifies it. The spectral norm of W is kept below 1, so that there is exactly one fixed point at
every moment of training, and all samples can be expected to converge. Source: S. Bai, J. Z. Kolter,
V. Koltun, Deep Equilibrium Models, NeurIPS 2019.

    pip install -e '.[examples]'
    python -m examples.digits_classifier

Prints the test accuracy, the share of test samples that converged and their steps; draws the
training curve, steps of each digit, residuals of three solvers, and digits of many and few steps.
"""

from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import solvers
from implicit import FixedPointLayer, Solution, cached_weights, spectral_normalise
from implicit.diagnostics.style import house_style, save_figure

SEED = 0


class Cell(nn.Module):
    """The map whose fixed point is the hidden state."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """One application; both of shape (batch, width)."""
        return torch.tanh(self.inner(y) + x)


class Classifier(nn.Module):
    """64 pixels -> equilibrium -> 10 classes."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.embed, self.read_out = nn.Linear(64, width), nn.Linear(width, 10)
        cell = spectral_normalise(Cell(width), bound=0.95)
        self.equilibrium = FixedPointLayer(cell, solver=solvers.Anderson(rtol=1e-4))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Solution]:
        """Logits, and the evidence that they come from a fixed point."""
        x = self.embed(pixels)
        with cached_weights(self.equilibrium):
            s = self.equilibrium(torch.zeros_like(x), x)
        return self.read_out(s.value), s


def main(epochs: int = 30, out: Path = Path("results/examples/digits_classifier.png")) -> dict:
    """Train, evaluate and draw."""
    torch.manual_seed(SEED)
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    x_train, x_test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    t_train, t_test = (torch.tensor(part) for part in parts[2:])
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    curve = []
    for _ in range(epochs):
        for batch in torch.randperm(len(x_train)).split(64):
            logits, s = model(x_train[batch])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, t_train[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            logits, s = model(x_test)
        curve.append((logits.argmax(1) == t_test).float().mean().item())
    draw(model, x_test, t_test, curve, s, out)
    return {
        "accuracy": curve[-1],
        "converged": s.converged.float().mean().item(),
        "mean_steps": s.num_steps.float().mean().item(),
        "most_steps": int(s.num_steps.max()),
    }


@house_style()
def draw(
    model: Classifier, x: Tensor, t: Tensor, curve: list[float], s: Solution, out: Path
) -> None:
    """Four panels: the training curve, steps per digit, residuals per solver, and some digits."""
    figure = Figure(figsize=(10, 8))
    (training, steps), (residuals, digits) = figure.subplots(2, 2)
    training.plot(range(1, len(curve) + 1), [100 * share for share in curve])
    title = f"(a) Training, seed {SEED}; {len(t)} test digits"
    training.set(xlabel="epoch", ylabel="test accuracy, %", title=title)
    steps.boxplot([s.num_steps[t == digit].numpy() for digit in range(10)], tick_labels=range(10))
    steps.set(xlabel="digit", ylabel="Anderson's steps", title="(b) To a residual of 1e-4")
    order = s.num_steps.argsort(stable=True).roll(5)[:10]
    rows = nn.functional.pad(x[order].view(2, 5, 8, 8), (1, 1, 1, 1))
    digits.imshow(rows.transpose(1, 2).reshape(20, 50).numpy(), cmap="gray_r")
    digits.set(title="(d) Digits of most steps, and below of fewest")
    digits.axis("off")
    with torch.no_grad():
        x = model.embed(x)
        for name in ("picard", "anderson", "broyden"):
            solver = solvers.get_solver(name, rtol=1e-6)
            cell, y0 = model.equilibrium.module, torch.zeros_like(x)
            trace = solvers.trace(cell, y0, x, solver=solver, max_steps=60)
            residuals.semilogy(trace.num_evals, trace.residual.amax(1), label=name)
    residuals.set(xlabel="evaluations of f", ylabel="worst residual", title="(c) Three solvers")
    residuals.legend()
    save_figure(figure, out)


if __name__ == "__main__":
    for key, value in tyro.cli(main).items():
        print(f"{key}: {value:.4g}")

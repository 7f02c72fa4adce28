"""An implicit graph network that hears from the far end of long chains.

The states of all nodes are one fixed point, Y = tanh(W Y A + U X), with A the normalised adjacency:
a message travels as far as the spectral norm of W lets it, however deep an explicit network would
have to be. The task, as in the source: chains of 15 nodes, of which only the first says in its
features to which of two classes its chain belongs. Source: F. Gu et al., Implicit Graph Neural
Networks, NeurIPS 2020.

    python -m examples.graph_network

Prints the accuracy on chains that were not trained on, beside a graph convolutional network of 2
and of 8 layers with the same width, optimiser and steps; draws what they predict.
"""

from pathlib import Path

import networkx as nx
import torch
import tyro
from torch import Tensor, nn

import solvers
from implicit import Exact, FixedPointLayer, cached_weights, spectral_normalise
from implicit.diagnostics.style import BLUE, ORANGE, house_style, panels, save_figure

NUM_CHAINS, LENGTH, WIDTH, NUM_FEATURES = 60, 15, 16, 4
ANDERSON, EXACT = solvers.Anderson(rtol=1e-4), Exact(max_steps=400)


class Propagation(nn.Module):
    """Y -> tanh(A Y W + X): the state is the whole graph, with one row per node."""

    def __init__(self, adjacency: Tensor):
        super().__init__()
        self.weight = nn.Linear(WIDTH, WIDTH, bias=False)
        self.register_buffer("adjacency", adjacency)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """One round of messages; both of shape (nodes, width)."""
        return torch.tanh(self.adjacency @ self.weight(y) + x)


class Network(nn.Module):
    """Embedding, rounds of messages, linear read-out; `depth=None`: rounds until none matters."""

    def __init__(self, adjacency: Tensor, depth: int | None):
        super().__init__()
        self.embed, self.read_out = nn.Linear(NUM_FEATURES, WIDTH), nn.Linear(WIDTH, 2)
        self.layers = nn.ModuleList(Propagation(adjacency) for _ in range(depth or 0))
        if depth is None:
            # Nodes depend on each other: the graph is one sample, hence batch_dims=0.
            cell = spectral_normalise(Propagation(adjacency), bound=0.99)
            self.equilibrium = FixedPointLayer(cell, ANDERSON, EXACT, batch_dims=0, throw=True)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of every node."""
        y = x = self.embed(features)
        for layer in self.layers:
            y = layer(y, x)
        if not self.layers:
            with cached_weights(self.equilibrium):
                self.solution = self.equilibrium(x.detach(), x)
            y = self.solution.value
        return self.read_out(y)


def make_chains() -> tuple[nx.Graph, Tensor, Tensor, Tensor]:
    """Graph, normalised adjacency, features and classes of all nodes."""
    graph = nx.disjoint_union_all([nx.path_graph(LENGTH)] * NUM_CHAINS)
    laplacian = torch.tensor(nx.normalized_laplacian_matrix(graph).toarray())
    classes = (torch.arange(len(graph)) // LENGTH) % 2
    features = 0.1 * torch.randn(len(graph), NUM_FEATURES)
    features[:, 0] = 0
    features[::LENGTH, 0] = 2.0 * classes[::LENGTH] - 1
    return graph, torch.eye(len(graph)) - laplacian.float(), features, classes


def main(steps: int = 400, out: Path = Path("results/examples/graph_network.png")) -> dict:
    """Train all three on half of the chains, test on the others, draw."""
    torch.manual_seed(0)
    graph, adjacency, features, classes = make_chains()
    train = torch.arange(len(graph)) // LENGTH < NUM_CHAINS // 2
    numbers, right = {}, {}
    for name, depth in {"implicit": None, "explicit, 2 layers": 2, "explicit, 8 layers": 8}.items():
        model = Network(adjacency, depth)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features)[train], classes[train]).backward()
            optimizer.step()
        with torch.no_grad():
            right[name] = model(features).argmax(1) == classes
        numbers[name] = right[name][~train].float().mean().item()
    draw(graph, right, out)
    return numbers


@house_style()
def draw(graph: nx.Graph, right: dict[str, Tensor], out: Path) -> None:
    """Share of right answers against the distance from the node that knows."""
    figure, (left, axes) = panels(2)
    for name, hits in right.items():
        tested = hits.view(NUM_CHAINS, LENGTH)[NUM_CHAINS // 2 :]
        axes.plot(100 * tested.float().mean(0), label=name)
    axes.set(xlabel="distance from the node that knows", ylabel="right, %", title="(b) Test chains")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    chains = graph.subgraph(range((NUM_CHAINS - 8) * LENGTH, NUM_CHAINS * LENGTH))
    place = {i: (i % LENGTH, i // LENGTH) for i in chains}
    colors = [BLUE if right["implicit"][i] else ORANGE for i in chains]
    nx.draw_networkx(chains, place, ax=left, node_color=colors, node_size=40, with_labels=False)
    left.axis("off")
    left.set_title("(a) Eight test chains; blue: implicit network right")
    save_figure(figure, out)


if __name__ == "__main__":
    for key, value in tyro.cli(main).items():
        print(f"{key}: {value:.4g}")

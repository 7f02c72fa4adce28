"""Every model says which layer solves, so that nobody has to ask for its class."""

import pytest
from torch import nn

from implicit import FixedPointLayer
from models import (
    Attractor,
    AttractorLM,
    GridAttractor,
    GridSpec,
    GridTransformer,
    LanguageSpec,
    ParcaeLM,
    Reasoner,
    TransformerLM,
)

GRID = GridSpec(num_symbols=4, side=4, layout="mixer", width=8)
TEXT = LanguageSpec(vocabulary=17, width=16, num_heads=2)
MODELS = [
    Attractor(nn.Identity(), nn.Bilinear(2, 2, 2)),
    GridAttractor(GRID),
    GridTransformer(GRID),
    Reasoner(GRID, nn.Identity()),
    AttractorLM(TEXT),
    ParcaeLM(TEXT),
    TransformerLM(TEXT),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_solving_is_the_one_layer_that_solves(model: nn.Module) -> None:
    layers = [module for module in model.modules() if isinstance(module, FixedPointLayer)]
    assert layers == ([] if model.solving is None else [model.solving])

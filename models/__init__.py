"""Networks: the Attractor wrapper, its blocks, grid models, reasoners and language models.

Each is imported when it is first used, so that a grid model does not load the language models.
"""

from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING

# Run by its path, since another package `solvers` may hide ours.
run_path(str(Path(__file__).parents[1] / "solvers" / "siblings.py"))["check"](
    __file__, "solvers", "implicit"
)

from solvers import lazy
from solvers.version import __version__ as __version__

if TYPE_CHECKING:
    from models.attention import KVCache, SelfAttention
    from models.attractor import Attractor, AttractorOutput, Start
    from models.blocks import (
        Block,
        Convolution,
        PreNormBlock,
        SquaredReLU,
        SwiGLU,
        TokenMixer,
        UnitAttention,
    )
    from models.grid import GridAttractor, GridOutput, GridSpec, GridTransformer, TokenLayout
    from models.hugging_face import HuggingFaceStack
    from models.language import (
        AttractorLM,
        Cache,
        LanguageModel,
        LanguageOutput,
        LanguageSpec,
    )
    from models.parcae import ParcaeLM
    from models.reasoners import Cycle, GridModel, PathNoise, Reasoner, TwoModuleCycle
    from models.recompute import modules_used_once, recompute_activations, recomputes
    from models.recurrent import Gru, Scan
    from models.transformer import TransformerLM
else:
    # The names in each module that are imported on first use.
    _NAMES = {
        "attention": "KVCache SelfAttention",
        "attractor": "Attractor AttractorOutput Start",
        "blocks": "Block Convolution PreNormBlock SquaredReLU SwiGLU TokenMixer UnitAttention",
        "grid": "GridAttractor GridOutput GridSpec GridTransformer TokenLayout",
        "hugging_face": "HuggingFaceStack",
        "language": "AttractorLM Cache LanguageModel LanguageOutput LanguageSpec",
        "parcae": "ParcaeLM",
        "reasoners": "Cycle GridModel PathNoise Reasoner TwoModuleCycle",
        "recompute": "modules_used_once recompute_activations recomputes",
        "recurrent": "Gru Scan",
        "transformer": "TransformerLM",
    }
    __getattr__, __dir__ = lazy.attributes(
        __name__,
        {n: f"models.{m}:{n}" for m, names in _NAMES.items() for n in names.split()},
    )

__all__ = [
    "Attractor",
    "AttractorLM",
    "AttractorOutput",
    "Block",
    "Cache",
    "Convolution",
    "Cycle",
    "GridAttractor",
    "GridModel",
    "GridOutput",
    "GridSpec",
    "GridTransformer",
    "Gru",
    "HuggingFaceStack",
    "KVCache",
    "LanguageModel",
    "LanguageOutput",
    "LanguageSpec",
    "ParcaeLM",
    "PathNoise",
    "PreNormBlock",
    "Reasoner",
    "Scan",
    "SelfAttention",
    "SquaredReLU",
    "Start",
    "SwiGLU",
    "TokenLayout",
    "TokenMixer",
    "TransformerLM",
    "TwoModuleCycle",
    "UnitAttention",
    "modules_used_once",
    "recompute_activations",
    "recomputes",
]

"""Networks: the Attractor wrapper, its blocks, grid models, reasoners and language models."""

from pathlib import Path
from runpy import run_path

# By its path, since another `solvers` may hide ours.
run_path(str(Path(__file__).parents[1] / "solvers" / "siblings.py"))["check"](
    __file__, "solvers", "implicit"
)

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
    TransformerLM,
)
from models.parcae import ParcaeLM
from models.reasoners import Cycle, PathNoise, Reasoner, TwoModuleCycle
from models.recompute import modules_used_once, recompute_activations, recomputes
from models.recurrent import Gru, Scan
from solvers.version import __version__ as __version__

GridModel = GridAttractor | GridTransformer | Reasoner
checkpoint_activations = recompute_activations

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
    "checkpoint_activations",
    "modules_used_once",
    "recompute_activations",
    "recomputes",
]

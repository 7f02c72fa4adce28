"""Networks: the Attractor wrapper, its blocks, grid models, reasoners and language models."""

from pathlib import Path
from runpy import run_path

# By its path, since another `solvers` may hide ours.
run_path(str(Path(__file__).parents[1] / "solvers" / "siblings.py"))["check"](
    __file__, "solvers", "implicit"
)

from models.activation_checkpointing import (
    checkpoint_activations,
    modules_used_once,
    recomputes,
)
from models.attention import Past, SelfAttention
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
from models.grid import GridAttractor, GridOutput, GridSpec, GridTransformer, Layout
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
from models.recurrent import Gru, Scan
from solvers.version import __version__ as __version__

GridModel = GridAttractor | GridTransformer | Reasoner

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
    "LanguageModel",
    "LanguageOutput",
    "LanguageSpec",
    "Layout",
    "ParcaeLM",
    "Past",
    "PathNoise",
    "PreNormBlock",
    "Reasoner",
    "Scan",
    "SelfAttention",
    "SquaredReLU",
    "Start",
    "SwiGLU",
    "TokenMixer",
    "TransformerLM",
    "TwoModuleCycle",
    "UnitAttention",
    "checkpoint_activations",
    "modules_used_once",
    "recomputes",
]

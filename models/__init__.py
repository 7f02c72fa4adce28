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
        TransformerLM,
    )
    from models.parcae import ParcaeLM
    from models.reasoners import Cycle, GridModel, PathNoise, Reasoner, TwoModuleCycle
    from models.recompute import modules_used_once, recompute_activations, recomputes
    from models.recompute import recompute_activations as checkpoint_activations
    from models.recurrent import Gru, Scan
else:
    __getattr__, __dir__ = lazy.attributes(
        __name__,
        {
            "Attractor": "models.attractor:Attractor",
            "AttractorLM": "models.language:AttractorLM",
            "AttractorOutput": "models.attractor:AttractorOutput",
            "Block": "models.blocks:Block",
            "Cache": "models.language:Cache",
            "Convolution": "models.blocks:Convolution",
            "Cycle": "models.reasoners:Cycle",
            "GridAttractor": "models.grid:GridAttractor",
            "GridModel": "models.reasoners:GridModel",
            "GridOutput": "models.grid:GridOutput",
            "GridSpec": "models.grid:GridSpec",
            "GridTransformer": "models.grid:GridTransformer",
            "Gru": "models.recurrent:Gru",
            "HuggingFaceStack": "models.hugging_face:HuggingFaceStack",
            "KVCache": "models.attention:KVCache",
            "LanguageModel": "models.language:LanguageModel",
            "LanguageOutput": "models.language:LanguageOutput",
            "LanguageSpec": "models.language:LanguageSpec",
            "ParcaeLM": "models.parcae:ParcaeLM",
            "PathNoise": "models.reasoners:PathNoise",
            "PreNormBlock": "models.blocks:PreNormBlock",
            "Reasoner": "models.reasoners:Reasoner",
            "Scan": "models.recurrent:Scan",
            "SelfAttention": "models.attention:SelfAttention",
            "SquaredReLU": "models.blocks:SquaredReLU",
            "Start": "models.attractor:Start",
            "SwiGLU": "models.blocks:SwiGLU",
            "TokenLayout": "models.grid:TokenLayout",
            "TokenMixer": "models.blocks:TokenMixer",
            "TransformerLM": "models.language:TransformerLM",
            "TwoModuleCycle": "models.reasoners:TwoModuleCycle",
            "UnitAttention": "models.blocks:UnitAttention",
            "checkpoint_activations": "models.recompute:recompute_activations",
            "modules_used_once": "models.recompute:modules_used_once",
            "recompute_activations": "models.recompute:recompute_activations",
            "recomputes": "models.recompute:recomputes",
        },
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
    "checkpoint_activations",
    "modules_used_once",
    "recompute_activations",
    "recomputes",
]

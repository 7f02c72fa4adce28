"""What TRM, HRM and EqR have besides their blocks: tokens before the cells, and initial weights.

All start from normal numbers that are cut off at two standard deviations. An embedding is stored
with a variance of 1 / D and multiplied by sqrt(D) where it is used, so that a step of the optimiser
moves it sqrt(D) times as far as its other weights.

Legend: B batch, T cells, P tokens of the puzzle, D width.

References:
    `models/recursive_reasoning/trm.py` of https://github.com/SamsungSAILMontreal/TinyRecursiveModels,
    `models/hrm/hrm_act_v1.py` of https://github.com/sapientinc/HRM, and `models/eqr.py` of
    https://github.com/locuslab/EqR.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

# The standard deviation of a standard normal number that is cut off at two of them.
_CUT_OFF = 0.87962566103423978


class PublishedEncoder(nn.Module):
    """The tokens of a puzzle, and then one for each cell: the embedding of its symbol.

    Of the puzzle's tokens the first is learned, and begins at zero; the others are always zero,
    and give the network room. A model learns to halt from the first token.

    Args:
        num_inputs: Symbols that a cell may have.
        width: D.
        puzzle_tokens: P.
    """

    def __init__(self, num_inputs: int, width: int, puzzle_tokens: int = 0):
        super().__init__()
        self.embedding = nn.Embedding(num_inputs, width)
        truncated_normal_(self.embedding.weight, width**-0.5)
        self.puzzle_tokens, self.scale = puzzle_tokens, math.sqrt(width)
        self.puzzle = nn.Parameter(torch.zeros(width)) if puzzle_tokens else None

    def forward(self, x_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B P+T D"]:
        """Embed the puzzle and its cells."""
        cells = self.embedding(x_BT)
        if self.puzzle is not None:
            first_PD = F.pad(self.puzzle[None], (0, 0, 0, self.puzzle_tokens - 1))
            cells = torch.cat((first_PD.expand(len(cells), -1, -1), cells), 1)
        return self.scale * cells


class PublishedHead(nn.Linear):
    """The logits of the cells, which come after the tokens of the puzzle; without biases.

    Args:
        width: D.
        num_symbols: Symbols of an answer.
        puzzle_tokens: P.
    """

    def __init__(self, width: int, num_symbols: int, puzzle_tokens: int = 0):
        super().__init__(width, num_symbols, bias=False)
        lecun_(self)
        self.puzzle_tokens = puzzle_tokens

    def forward(self, input: Float[Tensor, "B P+T D"]) -> Float[Tensor, "B T S"]:
        """Read the cells."""
        return super().forward(input[:, self.puzzle_tokens :])


def lecun_(module: nn.Module) -> None:
    """Draw the weights of all linear maps anew: of variance 1 / inputs. Biases begin at zero.

    References:
        Y. LeCun et al., Efficient BackProp, 1998, sec. 4.6.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            for name, parameter in part.named_parameters():
                if name == "bias":
                    nn.init.zeros_(parameter)
                else:
                    truncated_normal_(parameter, part.in_features**-0.5)


def truncated_normal_(tensor: Tensor, std: float = 1.0) -> Tensor:
    """Draw normal numbers of this standard deviation, none of which is beyond about 2.27 of it."""
    whole = std / _CUT_OFF
    return nn.init.trunc_normal_(tensor, std=whole, a=-2 * whole, b=2 * whole)

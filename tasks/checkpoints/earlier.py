"""Weights of networks that have changed since: what changed, so that an error can say it."""

import re
from collections.abc import Iterable

# What a name of a weight in a file that no model has any more says of the network it belongs to.
CHANGED = {
    r"\bf\.net\.": (
        "EqR damped its state and added noise once a cycle, and does so after every call of its "
        "network now, as published"
    ),
    r"\b(mixer|mlp)_norm\.weight$": (
        "blocks of the layouts 'attention' and 'mixer' had norms with learned gains; as published "
        "they have none now, and those of 'mixer' normalise over the cells, which it mixes through "
        "256 hidden numbers or a multiple"
    ),
    r"\b(symbol|places\.[0-9]+)\.weight$|\bhead\.bias$": (
        "the layouts 'attention' and 'mixer' had embeddings of rows, columns and boxes, a head "
        "with biases, and halted by the mean over all cells; as published they have neither now, "
        "scale the embeddings of symbols, and halt by the first token"
    ),
}


def changes(strangers: Iterable[str]) -> list[str]:
    """What has changed since weights were written.

    Args:
        strangers: Names in the file that the model has no weights for.
    """
    names = list(strangers)
    if not all(any(re.search(name, each) for name in CHANGED) for each in names):
        return []  # they are of another kind of model
    return [why for name, why in CHANGED.items() if any(re.search(name, each) for each in names)]

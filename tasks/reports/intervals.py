"""How far a share of a sample may be from the share of the whole."""

import math

DEVIATIONS = 1.959964  # of a normal distribution: 95 % lie within


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of 95 % for the probability behind a share of `count` independent trials.

    Unlike share plus or minus its standard error it stays within 0 and 1, and has a width where all
    trials or none succeeded.

    References:
        E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22
        (1927).

    Example:
        >>> low, high = wilson(1.0, 100)
        >>> f"{low:.3f} to {high:.3f}"
        '0.963 to 1.000'
    """
    if count < 1:
        return 0.0, 1.0
    square = DEVIATIONS**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def with_interval(share: float, count: int) -> str:
    """A share in percent with its interval, as in `74.1% (71.3 to 76.7)`."""
    low, high = wilson(share, count)
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"

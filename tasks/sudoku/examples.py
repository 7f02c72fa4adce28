"""Puzzles to try a 9x9 model on, made by this project's own generator and walks."""

HARD = "95.1..7...3...6.8...8..21..2.......4.8..7.9...94....5......8..3...6..47.....5...."
FAILS = "3...6..7....8.3.141............2....7....54.1.6....9...3.....87.1..8.5....7.54..."

NINE = {"hard": HARD, "not solved": FAILS}
"""By what they are called.

`HARD` takes our solver 32 guesses; the model `extreme` converges after some 120 steps. On `FAILS`
it does not converge within 128.
"""

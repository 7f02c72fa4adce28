"""Puzzles to try a 9x9 model on, made by this project's own generator and walks."""

FEW = "4......7......1.8.32..9......8..5.........4.1........3....3...6...46...2..7......"
HARD = "95.1..7...3...6.8...8..21..2.......4.8..7.9...94....5......8..3...6..47.....5...."
FAILS = "3...6..7....8.3.141............2....7....54.1.6....9...3.....87.1..8.5....7.54..."

NINE = {"18 clues": FEW, "hard": HARD, "not solved": FAILS}
"""By what they are called.

`FEW` comes from a walk that takes clues away where the solution stays the only one; no such puzzle
has fewer than 17. `HARD` takes our solver 32 guesses, and the model `extreme` converges after some
120 steps. On `FAILS` it does not converge within 128.
"""

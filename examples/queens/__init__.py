"""N-queens completion, a grid task of its own; see docs/extending.md."""

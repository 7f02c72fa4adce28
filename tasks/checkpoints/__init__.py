"""Checkpoints of a run: how they are written and read, and which of them are kept."""

"""Experiments that consist of many runs: learning rates, seeds, processes."""

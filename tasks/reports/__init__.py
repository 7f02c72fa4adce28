"""The log of a run, tables and plots."""

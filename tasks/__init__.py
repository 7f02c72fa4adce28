"""What we train and measure: one package per task, each run with `python -m tasks.<name>`."""

"""What all tasks share: the training loop, checkpoints, reports and fixed-point evidence."""

"""What all grid puzzles share: options, files, evaluation, pictures and commands."""

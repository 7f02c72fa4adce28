"""Sudoku of side 4, 6 and 9: boards, exact solver, generator, files and augmentation."""

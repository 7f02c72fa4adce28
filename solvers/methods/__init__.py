"""The solvers of this library, one file each."""

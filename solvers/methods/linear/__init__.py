"""Linear solvers, for affine maps such as that of the adjoint equation."""

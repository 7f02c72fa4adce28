"""Methods for affine maps, which solve the adjoint equation."""

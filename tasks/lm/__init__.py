"""Language modelling: train, evaluate, generate, and see the equilibrium move into the proposal."""

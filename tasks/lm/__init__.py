"""Language modelling: train, evaluate, generate, and study equilibrium internalisation."""

"""Tools around a solve: choose a solver or a tolerance by measurement, and trace a solve."""

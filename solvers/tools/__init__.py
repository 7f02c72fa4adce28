"""Tools that look at a solve: choose a solver or a tolerance by measurement, and trace one."""

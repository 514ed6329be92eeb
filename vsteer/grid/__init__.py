"""A grid, from grid.yaml or from Python: its settings, its axes, and where in it a problem stands."""

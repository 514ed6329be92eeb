"""grid.yaml as a checked `Grid`: its settings, its axes, and where in the file a problem stands."""

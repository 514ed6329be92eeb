"""The machine that vsteer runs on: what it is, what it has left, and what a run would meet there."""

"""The machine that vsteer runs on: what it is, what is free on it, and what a run would meet there."""

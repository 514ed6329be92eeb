"""A grid and a model as a plan: configurations, prompts and rows, what they cost, and whether they fit."""

"""Vectors that are learned: the model stays as it is, and gradients change the vector alone."""

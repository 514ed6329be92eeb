"""The ways from activations of contrast data to directions."""

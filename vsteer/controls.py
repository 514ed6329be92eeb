"""The kinds of control vectors, as long as their vector at each layer: what chance, or any contrast, does."""

# drawn at random; of the same data with its labels at random; of other behaviours' data
CONTROL_VECTORS = ("random", "shuffled", "unrelated")

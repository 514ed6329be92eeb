"""One start of a run: its loop over rows, its vectors, its folder and what a person sees of it."""

"""One start of a run: its models and their engines, its loop over rows, its vectors, folder and progress."""

"""Parquet in: what a run leaves on disk, and how it survives being killed.

Knows nothing of vLLM, grids or evaluations. `open_store` (store.py) writes; `status`, `check` and `connect`
read, also while a run goes on.
"""

"""The steered engine: requests in, results out, each request steered on its own.

Only this package and `patches/` import vllm. It knows nothing of grids or Parquet.
"""

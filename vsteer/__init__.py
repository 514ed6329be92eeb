"""vsteer steers language models: it adds vectors to the residual stream, through vLLM.

Importing this package imports neither torch nor vllm, so that results can be read anywhere.
"""

__version__ = "0.1.0"

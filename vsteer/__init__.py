"""vsteer steers language models: it adds vectors to the residual stream, through vLLM.

Importing this package imports neither torch nor vllm, so that results can be read anywhere.
"""

from vsteer.packages import __version__ as __version__

"""vsteer steers language models: it adds vectors to the residual stream, through vLLM.

    run = vsteer.run("grid.yaml")                    # or a dictionary; or vsteer.open_run("runs/quickstart")
    run.sql("layer_peaks").df()
    vector = vsteer.extract("smollm2-135m-instruct", "sentiment")
    with vsteer.Engine("smollm2-135m-instruct") as engine:
        engine.generate(["How was the film?"], steer=vector.at(layer=20, multiplier=1.5))

Importing this package imports neither torch nor vllm, so that results can be read anywhere: each name comes
when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vsteer.errors import VsteerError as VsteerError
from vsteer.packages import __version__ as __version__

if TYPE_CHECKING:
    from vsteer.api.engine import Engine as Engine
    from vsteer.api.runs import Run as Run
    from vsteer.api.runs import open_run as open_run
    from vsteer.api.runs import run as run
    from vsteer.api.vectors import extract as extract
    from vsteer.api.vectors import load_vector as load_vector

_FOUND_IN = {
    "Engine": "vsteer.api.engine",
    "Run": "vsteer.api.runs",
    "extract": "vsteer.api.vectors",
    "load_vector": "vsteer.api.vectors",
    "open_run": "vsteer.api.runs",
    "run": "vsteer.api.runs",
}

# Python binds the folder run/ to this module once, when it is first imported. This does so and undoes it, so
# that `vsteer.run` is the function whatever is imported later.
import_module("vsteer.run")
del globals()["run"]


def __getattr__(name: str) -> Any:
    if name not in _FOUND_IN:
        raise AttributeError(f"module 'vsteer' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_FOUND_IN[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_FOUND_IN})

"""Every error that a user can do something about: one message, one hint, and the exit code it ends with.

The command line shows them as two short lines without a traceback (`vsteer/cli/__init__.py`). An exception
that isn't a `VsteerError` is a bug in vsteer or beneath it, and keeps its traceback.
"""


class VsteerError(Exception):
    """What went wrong, and what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        # Exception gets both too, so that the error survives pickling on its way out of a worker process.
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


class UsageError(VsteerError):
    """The request itself makes no sense: an unknown word, options that exclude each other."""

    exit_code = 2


class DataError(VsteerError):
    """A data file that can't be read: the message names file and line, and what was expected there."""


class VectorError(VsteerError):
    """A steering vector that can't be used: wrong width, NaN, a layer that doesn't exist."""


class ModelError(VsteerError):
    """A model that can't be found, fetched or read."""


class EngineError(VsteerError):
    """The engine can't do what is wanted of it: a full table, an unknown cell, a refused request."""


class UnsupportedError(VsteerError):
    """A model family or an option that no proof covers; the message lists what works."""


class StoreError(VsteerError):
    """A run folder that can't be written or read: no space, read-only, in use, damaged."""


class SteeringFault(RuntimeError):
    """A row might not have been steered as it says: a bug here or beneath, so it keeps its traceback."""

"""The behaviours that come with vsteer, by name: `data_path("sentiment", "pairs")`.

All of it was written for vsteer (CC0-1.0). What each behaviour is for is said in its README.md.
"""

from pathlib import Path

from vsteer.errors import DataError

_FOLDER = Path(__file__).with_name("behaviours")


def behaviours() -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in _FOLDER.iterdir() if (folder / "README.md").is_file()))


def parts(behaviour: str) -> tuple[str, ...]:
    """What the behaviour has: pairs, questions and open; refusal also harmful and harmless instructions."""
    if behaviour not in behaviours():
        raise DataError(
            f"no built-in behaviour is called {behaviour!r}", f"there are {', '.join(behaviours())}"
        )
    return tuple(sorted(path.stem for path in (_FOLDER / behaviour).glob("*.json*")))


def data_path(behaviour: str, part: str) -> Path:
    if part not in parts(behaviour):
        raise DataError(
            f"the built-in behaviour {behaviour!r} has no {part!r}", f"it has {', '.join(parts(behaviour))}"
        )
    return next((_FOLDER / behaviour).glob(f"{part}.json*"))

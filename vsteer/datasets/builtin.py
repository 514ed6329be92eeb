"""Data by name: the behaviours that come with vsteer, `data_path("sentiment", "pairs")`, or a user's files.

All of the behaviours were written for vsteer (CC0-1.0). Each one's README.md says what it is for.
"""

from pathlib import Path

from vsteer.errors import DataError
from vsteer.validation import did_you_mean

_FOLDER = Path(__file__).with_name("behaviours")
# Small contrasts that are no behaviours, for controls. A grid takes the first so many of them, and a row's
# identity depends on which, so another one goes to the end.
CONTRASTS = (
    "winter", "sea", "past", "plural", "night", "city", "sweet", "red", "cats", "she", "large", "old",
    "inside", "letters", "fast", "music", "north", "wood", "i", "wet",
)  # fmt: skip


def behaviours() -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in _FOLDER.iterdir() if (folder / "README.md").is_file()))


def parts(behaviour: str) -> tuple[str, ...]:
    """What the behaviour has: pairs, questions and open; refusal also has instructions."""
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


def contrast_path(name: str) -> Path:
    """The pairs of one of `CONTRASTS`."""
    return _FOLDER.with_name("contrasts") / f"{name}.jsonl"


def is_builtin(name: str) -> bool:
    """Whether a grid's data is a built-in behaviour, or one part of it such as `refusal/instructions`."""
    behaviour, _, part = name.partition("/")
    return behaviour in behaviours() and (not part or part in parts(behaviour))


def find_data(name: str, part: str, beside: Path) -> Path:
    """A built-in behaviour (`refusal`, or one part of it, `refusal/instructions`), or a file beside a folder.

    A behaviour wins over a file of the same name, which is written `./refusal`.
    """
    if is_builtin(name):
        behaviour, _, named = name.partition("/")
        return data_path(behaviour, named or part)
    path = find_file(name, beside)
    if path is None:
        hint = f"paths are relative to {beside.absolute()}; the behaviours are {', '.join(behaviours())}"
        raise DataError(
            f"no data file and no built-in behaviour {name[:200]!r}",
            did_you_mean(name, list(behaviours()), hint),
        )
    return path


def find_file(name: str, beside: Path) -> Path | None:
    """The file at a path that counts from the folder `beside`; None where there is none."""
    try:
        path = beside / Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # a path that no system could have
        return None

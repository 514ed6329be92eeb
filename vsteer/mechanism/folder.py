"""The folder of one steering's analysis: what it is of, its texts, what is done of them, and its tables.

An interrupted attribution goes on: each text's sums are a file of their own. A folder that was begun with
other settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import StoreError, UsageError
from vsteer.files import parse_json, read_regular, written_whole
from vsteer.mechanism.texts import Text, read_texts
from vsteer.store.files import disk_errors, write_file

SETTINGS, TEXTS, DONE = "settings.json", "texts.jsonl", "done"
_MOST_BYTES = 2**20
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """What decides an analysis's numbers, but for the texts, which lie beside it."""

    model: str
    revision: str | None
    model_sha256: str
    dtype: str
    vector: str  # its file
    vector_name: str
    vector_sha256: str  # of its numbers
    layer: int
    multiplier: float
    positions: str
    system: str | None
    steps: int
    behind_norms: bool
    controls: int
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """The columns with which every table begins."""
        return {
            "model": self.model,
            "vector": self.vector_name,
            "injected_layer": self.layer,
            "multiplier": self.multiplier,
        }


@dataclass(frozen=True)
class Folder:
    path: Path
    settings: Settings

    @classmethod
    def begin(cls, path: Path, settings: Settings) -> Self:
        """Make the folder, or go on with it."""
        if (path / SETTINGS).exists():
            there = cls.open(path)
            for name, value in asdict(settings).items():
                old = getattr(there.settings, name)
                # where the file lies is not what it holds
                if old != value and name != "vector":
                    raise UsageError(
                        f"{path} was begun with {name} {_short(old)}, not {_short(value)}",
                        "give another folder with --out, or the settings that it was begun with",
                    )
            return there
        with disk_errors(f"making {path}"):
            (path / DONE).mkdir(parents=True, exist_ok=True)
        write_file(path / SETTINGS, json.dumps(asdict(settings), indent=2).encode())
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        try:
            return cls(path, Settings(**parse_json(read_regular(path / SETTINGS, _MOST_BYTES))))
        except (OSError, ValueError, TypeError):
            raise StoreError(
                f"{path} is no folder of an attribution, or its {SETTINGS} is damaged",
                "make one with: vsteer mechanism attribute MODEL VECTOR --layer L DATA --out FOLDER",
            ) from None

    @property
    def has_texts(self) -> bool:
        return (self.path / TEXTS).exists()

    def texts(self) -> list[Text]:
        return read_texts(self.path / TEXTS)

    def put_texts(self, texts: Sequence[Text]) -> None:
        lines = [json.dumps(text.as_json(), ensure_ascii=False) for text in texts]
        write_file(self.path / TEXTS, "".join(f"{line}\n" for line in lines).encode())

    def done(self, name: str) -> Arrays | None:
        """What was put under this name; None where nothing is, or what is can't be read."""
        path = self.path / DONE / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, KeyError):
            return None
        except Exception as error:  # a damaged archive: zipfile's and zlib's own errors
            if type(error).__module__ not in ("zipfile", "zlib"):
                raise
            return None

    def put_done(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        path = self.path / DONE / f"{name}.npz"
        with disk_errors(f"writing {path}"), written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def _short(value: object) -> str:
    return repr(value)[:60]

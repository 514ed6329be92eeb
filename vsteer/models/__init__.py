"""Which model a name means: a named small model that needs no hub, a folder, or a hub id.

A named model is made once, on first use, in `$VSTEER_HOME/models/<name>`, by a function that fills an empty
folder. A folder under that name is always complete: it is made under another and renamed at the end.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vsteer.errors import ModelError, UsageError
from vsteer.files import reading_hint
from vsteer.models import gemma3, smollm2, tiny_llama
from vsteer.models.hugging_face import refuse_own_code
from vsteer.models.weights import check_weights

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "tokenizer_config.json")
RECIPE_FILE = "vsteer.json"


class Source(NamedTuple):
    """What Hugging Face and vLLM take: a folder or a hub id, and a hub revision."""

    model: str
    revision: str | None


@dataclass(frozen=True)
class NamedModel:
    """A model that vsteer makes itself."""

    name: str
    about: str
    license: str
    size_mib: int
    recipe: int
    """Raise it whenever `make` comes to write something else, so that older folders are made again."""
    make: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        return home() / "models" / self.name


def home() -> Path:
    """The folder that vsteer keeps between runs."""
    if chosen := os.environ.get("VSTEER_HOME"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "vsteer"


def resolve(name_or_path: str, revision: str | None = None) -> Source:
    """Turn what a user wrote into what an engine loads; a named model is made on first use.

    A name wins over a folder of the same name in the working directory, which is written `./name`.
    """
    with _looking_for(name_or_path):
        path = Path(name_or_path).expanduser()
        local = name_or_path in NAMED or (name_or_path != "" and path.exists())
    if local and revision is not None:
        raise UsageError(
            f"{name_or_path[:100]} is not a hub id, so it has no revision {revision[:100]!r}",
            "leave the revision out",
        )
    if name_or_path in NAMED:
        return Source(str(ensure(NAMED[name_or_path])), None)
    if local:
        with _looking_for(name_or_path):
            check_folder(path)
        return Source(str(path.absolute()), None)
    if HUB_ID.fullmatch(name_or_path):
        return Source(name_or_path, revision)
    raise ModelError(
        f"no model {name_or_path[:100]!r}: not a named model, a folder, or a hub id",
        f"the named models are {', '.join(NAMED)}; a hub id looks like org/name",
    )


@contextlib.contextmanager
def _looking_for(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # a path that no system could have, or that may not be seen
        why = getattr(error, "strerror", None) or str(error)[:200]
        raise ModelError(
            f"can't look for the model {name[:60]!r}: {why}", reading_hint(error, "name a model")
        ) from None


def check_folder(path: Path) -> None:
    """Refuse a folder that isn't a model, whose model is Python of its own, or whose weights aren't whole."""
    wanted = "a model folder in Hugging Face's layout holds config.json, *.safetensors and a tokenizer"
    if not path.is_dir():
        raise ModelError(f"{path} is a file, not a model folder", wanted)
    missing = []
    if not (path / "config.json").is_file():
        missing.append("config.json")
    # Weights in pickle (*.bin, *.pt) do not count, since no user's file is ever unpickled.
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        missing.append("tokenizer.json")
    if missing:
        raise ModelError(f"{path} is not a model folder: it has no {', no '.join(missing)}", wanted)
    refuse_own_code(path)
    check_weights(path)


def named(name: str) -> NamedModel:
    if name not in NAMED:
        raise UsageError(f"no named model {name!r}", f"the named models are {', '.join(NAMED)}")
    return NAMED[name]


def is_present(model: NamedModel) -> bool:
    try:
        made = json.loads((model.folder / RECIPE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return bool(made == {"name": model.name, "recipe": model.recipe})


def present_folder(model: NamedModel) -> Path:
    if not is_present(model):
        raise ModelError(f"{model.name} is not here yet", f"run: vsteer models get {model.name}")
    return model.folder


def ensure(model: NamedModel) -> Path:
    """The model's folder, made if it isn't there; a second process that wants it meanwhile waits."""
    if is_present(model):
        return model.folder
    models = model.folder.parent
    making = models / f".{model.name}.making"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with locked(models / f".{model.name}.lock"):
            if is_present(model):
                return model.folder
            # Only the holder of the lock makes anything, so what lies there was left by one that was killed.
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            try:
                model.make(making)
                (making / RECIPE_FILE).write_text(json.dumps({"name": model.name, "recipe": model.recipe}))
                if model.folder.exists():
                    shutil.rmtree(model.folder)  # made by an older recipe
                making.rename(model.folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"can't make {model.folder}: {error}", "set VSTEER_HOME to a folder on a disk with room to write"
        ) from error
    return model.folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which the system releases however the process dies."""
    import fcntl  # not on Windows, where results can be read but no model is run

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


NAMED = {
    model.name: model
    for model in (
        NamedModel(
            name="smollm2-135m-instruct",
            about="a small real chat model (Llama architecture, 30 layers), for trying things out",
            license="Apache-2.0",
            size_mib=517,
            recipe=1,
            make=smollm2.make,
        ),
        NamedModel(
            name="gemma3-270m",
            about="a small real base model (Gemma 3 architecture, 18 layers), to compare with the other",
            license=gemma3.LICENSE,
            size_mib=1055,
            recipe=1,
            make=gemma3.make,
        ),
        NamedModel(
            name="tiny-llama",
            about="random weights (Llama architecture, 6 layers), for tests",
            license="Apache-2.0",
            size_mib=5,
            recipe=1,
            make=tiny_llama.make,
        ),
    )
}
"""The models that need no hub, by name."""

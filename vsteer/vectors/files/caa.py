"""CAA's vectors as torch files: `vec_layer_{L}_{model}.pt`, one layer's tensor; a file, a folder, or a dict.

Its layer L is ours: the wrapper that it puts around decoder block L records the block's output. The files
don't record where they come from, so the origin holds what the published layout's names say: the model, and
the norm, by `vectors/{behaviour}/` (raw) or `normalized_vectors/{behaviour}/` (caa). Elsewhere the norm is
unknown.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

from vsteer.errors import UnsupportedError, VectorError
from vsteer.protocol import Direction
from vsteer.vectors.checks import as_direction
from vsteer.vectors.vector import Origin, SteeringVector

_FILE = re.compile(r"vec_layer_(\d+)(?:_(.+))?\.pt")
_NORMS = {"vectors": "raw", "normalized_vectors": "caa"}


def read(path: Path) -> SteeringVector:
    """One vector from a file or a folder. Code in a pickle isn't run: torch reads weights only."""
    if path.is_dir():
        return _folder(path)
    content = _unpickled(path)
    if isinstance(content, Mapping):
        return SteeringVector(path.stem, _by_layer(content, str(path)), origin=Origin(norm=""))
    layer, model = _named(path)
    direction = _direction(content, layer, str(path))
    return SteeringVector(path.resolve().parent.name, {layer: direction}, origin=_origin(path, model))


def files_in(folder: Path) -> list[Path]:
    """The folder's torch files, by layer. A file that isn't one layer of one model's vector is an error."""
    files = {path: _named(path) for path in folder.glob("*.pt")}
    if not files:
        raise VectorError(
            f"{folder} holds no vec_layer_*.pt", "CAA keeps one folder a behaviour; name that one"
        )
    if len(models := sorted({model for _, model in files.values()})) > 1:
        raise VectorError(
            f"{folder} holds vectors of {len(models)} models: {', '.join(models)}",
            "keep one model's files in a folder of their own",
        )
    in_order = sorted(files, key=lambda path: files[path][0])
    layers = [files[path][0] for path in in_order]
    if len(set(layers)) < len(layers):
        raise VectorError(f"{folder} holds a layer twice", "keep one file a layer")
    return in_order


def _folder(folder: Path) -> SteeringVector:
    files = files_in(folder)
    directions = {}
    for path in files:
        layer, model = _named(path)
        directions[layer] = _direction(_unpickled(path), layer, str(path))
    return SteeringVector(folder.resolve().name, directions, origin=_origin(files[0], model))


def _unpickled(path: Path) -> object:
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            f"reading {path} needs torch, which isn't installed", "pip install torch, or convert it elsewhere"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of the pickle's age, beside the error that matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise VectorError(
            f"{path} holds more than tensors, and was not run",
            "a pickle can carry code; save the plain tensor: torch.save(vector.detach().cpu(), path)",
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch raises whatever error its parsers come to
        first_line = str(error).strip().split("\n")[0][:200]
        raise VectorError(
            f"{path} can't be read as a torch file: {first_line}", "it may have been cut short; copy it again"
        ) from error


def _by_layer(content: Mapping[object, object], source: str) -> dict[int, Direction]:
    directions = {}
    for key, value in content.items():
        if isinstance(key, bool) or not (isinstance(key, int) or (isinstance(key, str) and key.isdecimal())):
            raise VectorError(
                f"{source} has the key {key!r}", "a dict must map layers (0, 1, ...) to directions"
            )
        if int(key) in directions:
            raise VectorError(f"{source} has layer {int(key)} twice", "give each layer once")
        directions[int(key)] = _direction(value, int(key), source)
    return dict(sorted(directions.items()))


def _direction(value: object, layer: int, source: str) -> Direction:
    import torch

    if not isinstance(value, torch.Tensor):
        raise VectorError(
            f"{source}: layer {layer} is a {type(value).__name__}, not a tensor",
            "expected one tensor a layer",
        )
    # numpy has no bfloat16; every other dtype is judged as it is.
    tensor = value.detach()
    try:
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, or without content
        raise VectorError(f"{source}: layer {layer} is no plain tensor: {error}", "save it dense") from error
    return as_direction(values, layer, source)


def _named(path: Path) -> tuple[int, str]:
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise VectorError(
            f"{path} doesn't say its layer", "name it as CAA does: vec_layer_13_Llama-2-7b-chat-hf.pt"
        )
    return int(match[1]), match[2] or ""


def _origin(path: Path, model: str) -> Origin:
    return Origin(model=model, norm=_NORMS.get(path.resolve().parent.parent.name, ""))

"""CAA's vectors as torch files: `vec_layer_{L}_{model}.pt`, one layer's tensor; a file, a folder, or a dict.

Its layer L is ours: the wrapper that it puts around decoder block L records the block's output. The files
don't record where they come from, so the origin holds what the published layout's names say: the model, and
the norm, by `vectors/{behaviour}/` (raw) or `normalized_vectors/{behaviour}/` (caa). Elsewhere the norm is
unknown.
"""

import re
from pathlib import Path

from vsteer.errors import VectorError
from vsteer.files import read_regular
from vsteer.protocol import Direction
from vsteer.vectors.checks import MAX_BYTES, as_direction
from vsteer.vectors.files.layer_names import by_layer
from vsteer.vectors.files.torch_file import MoreThanTensorsError, Tensor, Unknown, read_torch
from vsteer.vectors.vector import Origin, SteeringVector

_FILE = re.compile(r"vec_layer_(\d{1,9})(?:_(.+))?\.pt", re.ASCII)
_NORMS = {"vectors": "raw", "normalized_vectors": "caa"}


def read(path: Path, content: bytes) -> SteeringVector:
    """One vector from a file: one layer's tensor, or a dictionary of layers. Code in a pickle isn't run."""
    value = _unpickled(path, content)
    if isinstance(value, dict):
        names = by_layer(value, str(path))
        directions = {layer: _direction(value[name], layer, str(path)) for layer, name in names.items()}
        return SteeringVector(path.stem, directions, origin=Origin(norm=""))
    layer, model = _named(path)
    direction = _direction(value, layer, str(path))
    return SteeringVector(path.resolve().parent.name, {layer: direction}, origin=_origin(path, model))


def read_folder(folder: Path) -> SteeringVector:
    """One vector from a folder of files, each a layer's tensor."""
    files = files_in(folder)
    directions = {}
    for path in files:
        layer, model = _named(path)
        directions[layer] = _direction(_unpickled(path, read_regular(path, MAX_BYTES)), layer, str(path))
    return SteeringVector(folder.resolve().name, directions, origin=_origin(files[0], model))


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
    if (size := sum(path.stat().st_size for path in files)) > MAX_BYTES:
        raise VectorError(
            f"the files in {folder} have {size:,} bytes together, and at most {MAX_BYTES:,} are read",
            "a vector is small; save tensor.clone(), not a view of a large tensor",
        )
    in_order = sorted(files, key=lambda path: files[path][0])
    layers = [files[path][0] for path in in_order]
    if len(set(layers)) < len(layers):
        raise VectorError(f"{folder} holds a layer twice", "keep one file a layer")
    return in_order


def _unpickled(path: Path, content: bytes) -> object:
    try:
        return read_torch(content)
    except MoreThanTensorsError as error:
        raise VectorError(
            f"{path} holds more than tensors, and was not run: {error}",
            "a pickle can carry code; save the plain tensor: torch.save(vector.detach().cpu(), path)",
        ) from error
    except ValueError as error:
        raise VectorError(
            f"{path} can't be read as a torch file: {str(error)[:200]}",
            "it may have been cut short; copy it again",
        ) from error


def _direction(value: object, layer: int, source: str) -> Direction:
    if isinstance(value, Unknown):
        raise VectorError(
            f"{source}: layer {layer} is no plain tensor ({value.name[:100]})",
            "save it dense: tensor.to_dense()",
        )
    if not isinstance(value, Tensor):
        raise VectorError(
            f"{source}: layer {layer} is a {type(value).__name__}, not a tensor",
            "expected one tensor a layer",
        )
    try:
        values = value.array()
    except (ValueError, KeyError) as error:
        raise VectorError(
            f"{source}: layer {layer} is not whole: {str(error)[:200]}",
            "it may have been cut short, or repeat its values",
        ) from error
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

"""Where a learning stands, in a file beside the vector to be, so that it goes on to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vsteer.errors import UsageError
from vsteer.store.files import write_file
from vsteer.vectors.training.learner import Progress, Row

_TENSORS = ("vector", "average", "square", "best")


class Checkpoint:
    """The finished layers' progress and that of the layer under way, each by its layer."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, json.loads(json.dumps(identity))
        self.layers: dict[int, Progress] = {}
        self.controls: dict[int, list[Row]] = {}

    def read(self) -> None:
        """Take over what an earlier start left; another learning's is an error."""
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                content = json.loads(file.metadata()["vsteer"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if content["identity"] != self.identity:
                raise UsageError(
                    f"{self.path} is of a learning with other settings, data or model",
                    "give those again, another --out, or --force to begin anew",
                )
            for layer, rest in content["layers"].items():
                found = {name: tensors[f"{layer}.{name}"] for name in _TENSORS}
                self.layers[int(layer)] = Progress(**found, **rest)
            self.controls = {int(layer): rows for layer, rows in content["controls"].items()}
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.path} can't be read: {str(error)[:100]}", "begin anew with --force"
            ) from None

    def write(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        layers = {}
        for layer, progress in self.layers.items():
            rest = dict(vars(progress))
            for name in _TENSORS:
                tensors[f"{layer}.{name}"] = rest.pop(name).contiguous()
            layers[str(layer)] = rest
        content = {"identity": self.identity, "layers": layers, "controls": self.controls}
        write_file(self.path, save(tensors, {"vsteer": json.dumps(content)}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

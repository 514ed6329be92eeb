"""The steering table on a rank's device: its buffers on the layers, the loading of a table, and the filling
of a step. Both model runners and the driver's calls reach it through `worker_table`.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vsteer.engine.forks import first_layers
from vsteer.engine.table import Capacity, placed_keys, read_table_file
from vsteer.engine.worker.capture import CaptureTable
from vsteer.engine.worker.layer import SteeredLayer, steer_layer
from vsteer.engine.worker.modules import Capture, Placed, Steering, shared_buffers
from vsteer.engine.worker.step import StepTable
from vsteer.errors import SteeringFault

# Where a steered model keeps its table.
ATTRIBUTE = "vsteer_table"


class WorkerTable:
    """`layers` are the decoder layers of this rank, by their place in the model; they become steered ones."""

    def __init__(
        self,
        layers: Mapping[int, Any],
        capacity: Capacity,
        hidden_size: int,
        max_tokens: int,
        device: torch.device,
        steered: type[SteeredLayer] = SteeredLayer,
    ) -> None:
        self.step_table = StepTable(())
        self.captures = CaptureTable(capacity.captures)
        self._bank, self.token_cell = shared_buffers(capacity, hidden_size, max_tokens, device)
        self._chosen = torch.zeros(capacity.captures, dtype=torch.int32, device=device)
        self._cells_now: NDArray[np.int32] = np.zeros(max_tokens, np.int32)
        self._any_steered_before = False
        self._any_chosen_before = False
        self._layers: dict[int, Steering] = {}
        self.sha256 = ""  # of the table's file, and of those that were added to it
        self._rows = 0  # of the bank that are in use
        self.first_layers: NDArray[np.int32] = np.zeros(0, np.int32)
        # [layer, cell]: where something is added behind the layer
        self.acts: NDArray[np.bool_] = np.zeros((0, 0), bool)
        # module -> layer
        self._placed: dict[str, dict[int, Placed]] = {module: {} for module in capacity.modules}
        self._captures: dict[int, Capture] = {}
        for index, layer in layers.items():
            self._layers[index] = Steering(self._bank, self.token_cell, capacity)
            for module, of_layer in self._placed.items():
                of_layer[index] = pkgutil.resolve_name(module)(self._bank, self.token_cell, capacity)
            if capacity.captures:
                self._captures[index] = Capture(self._chosen, hidden_size)
            placed = [of_layer[index] for of_layer in self._placed.values()]
            capture = self._captures.get(index)
            steer_layer(layer, self._layers[index], placed, capture, steered, first=index == 0)

    def load(self, path: Path) -> dict[str, Any]:
        """Replace the table by the one in `path`, and report what this rank holds then."""
        if self.step_table.open_keys:
            raise SteeringFault("a table cannot be replaced while steered requests are under way")
        self._bank.zero_()
        for steering in self._layers.values():
            steering.row.zero_()
            steering.scale.zero_()
        for of_layer in self._placed.values():
            for placed in of_layer.values():
                placed.row.zero_()
                placed.size.zero_()
        self.step_table, self._rows, self.sha256 = StepTable(()), 0, ""
        self.acts, self.first_layers = np.zeros((0, 0), bool), np.zeros(0, np.int32)
        return self.extend(path, "")

    def extend(self, path: Path, sha256: str) -> dict[str, Any]:
        """Add what is in `path` to the table `sha256`, also while requests are under way: no cell and no
        direction that they use changes. Report what this rank holds then."""
        if self.sha256 != sha256:
            raise SteeringFault("what is to be added to a steering table belongs to another one")
        arrays, fingerprints, sha = read_table_file(path)
        cells = len(self.step_table.fingerprints)
        # a direction must be there before a cell names it
        _put(self._bank, self._rows, arrays["bank"])
        for index, steering in self._layers.items():
            _put(steering.row, cells, arrays["row"][index])
            _put(steering.scale, cells, arrays["scale"][index])
        known = {"bank", "row", "scale"} | {key for module in self._placed for key in placed_keys(module)}
        if unknown := arrays.keys() - known:
            raise SteeringFault(f"a table with {sorted(unknown)} came to an engine that was started without")
        for module, of_layer in self._placed.items():
            for index, placed in of_layer.items():
                for key, buffer in zip(placed_keys(module), (placed.row, placed.size), strict=True):
                    if key in arrays:
                        # cells come first on the device, places in the array
                        _put(buffer.T, cells, arrays[key][index].T)
        scale = arrays["scale"]
        joins = first_layers(
            scale, [arrays[row] for row, _ in map(placed_keys, self._placed) if row in arrays]
        )
        acts = (scale != 0).any(axis=-1)
        self.acts = np.concatenate([self.acts, acts], axis=1) if cells else acts
        self.first_layers = np.concatenate([self.first_layers, joins])
        self._rows += len(arrays["bank"])
        self.step_table.fingerprints += fingerprints
        self.sha256 = hashlib.sha256(f"{sha256}{sha}".encode()).hexdigest() if sha256 else sha
        return {"sha256": self.sha256, "layers": sorted(self._layers)}

    def add_request(self, request_id: str, extra_args: Mapping[str, Any] | None) -> None:
        self.step_table.add(request_id, extra_args)
        self.captures.add(request_id, extra_args)

    def remove_request(self, request_id: str) -> None:
        self.step_table.remove(request_id)
        self.captures.remove(request_id)

    def fill_v1_step(
        self,
        request_ids: list[str],
        requests: Mapping[str, Any],
        computed: NDArray[np.integer[Any]],
        scheduled: NDArray[np.integer[Any]],
        resumed: Iterable[str],
    ) -> None:
        """The V1 runner reports no arrivals and departures, so they are read from its own table of requests.

        That table keeps preempted ones; the scheduler's output names those that are back.
        """
        if len(self.step_table) > len(requests):
            self.step_table.keep_only(requests)
            self.captures.keep_only(requests)
        for request_id in request_ids:
            if request_id not in self.step_table:
                params = requests[request_id].sampling_params
                self.add_request(request_id, params.extra_args if params else None)
        for request_id in resumed:
            self.step_table.resume(request_id)
        self.fill_step(request_ids, computed, scheduled)

    def fill_step(
        self, request_ids: list[str], computed: NDArray[np.integer[Any]], scheduled: NDArray[np.integer[Any]]
    ) -> None:
        """Write this step's token cells to the device, before the forward reads them."""
        self.take_captured()
        chosen = self.captures.choose(request_ids, computed, scheduled)
        if chosen or self._any_chosen_before:
            # an unused slot copies token 0, which every step has
            chosen_or_first = chosen + [0] * (len(self._chosen) - len(chosen))
            self._chosen.copy_(torch.tensor(chosen_or_first, dtype=torch.int32))
        self._any_chosen_before = bool(chosen)
        cells = self._cells_now
        self.step_table.fill(cells, request_ids, computed, scheduled)
        any_steered = bool(cells.any())
        if any_steered or self._any_steered_before:
            source = torch.from_numpy(cells.copy())
            if self.token_cell.device.type == "cuda":
                # PyTorch's pinned allocator keeps the copy until the stream has read it
                source = source.pin_memory()
            self.token_cell.copy_(source, non_blocking=True)
        self._any_steered_before = any_steered

    def take_captured(self) -> None:
        """Fetch what the last step captured, before another one writes over it."""
        used = self.captures.used
        if not used:
            return
        slots = [capture.streams[:used] for _, capture in sorted(self._captures.items())]
        self.captures.take(torch.stack(slots).cpu().numpy())
        for capture in self._captures.values():
            # so that a layer that does not write is found out
            capture.streams.fill_(torch.nan)

    @contextmanager
    def lent(self) -> Iterator[torch.Tensor]:
        """The buffer of token cells, between two steps, for other batches than a step's."""
        self.take_captured()
        # an unused slot copies token 0, which every batch has
        self._chosen.zero_()
        self._any_chosen_before = False
        try:
            yield self.token_cell
        finally:
            self.token_cell.zero_()
            self._any_steered_before = False
            for capture in self._captures.values():
                capture.streams.fill_(torch.nan)

    @property
    def captured_layers(self) -> list[int]:
        return sorted(self._captures)


def worker_table(model: nn.Module) -> WorkerTable | None:
    """The table of the model behind whatever a runner wraps around it, None for a stock model."""
    inner = getattr(model, "unwrap", lambda: model)()
    table: WorkerTable | None = getattr(inner, ATTRIBUTE, None)
    return table


def _put(buffer: torch.Tensor, start: int, array: NDArray[Any]) -> None:
    """Put `array` into `buffer` from `start` on, and check what the device holds."""
    values = torch.from_numpy(np.ascontiguousarray(array))
    end = start + values.shape[0]
    if end > buffer.shape[0] or values.shape[1:] != buffer.shape[1:]:
        raise SteeringFault(
            f"a table of shape {tuple(values.shape)} does not fit the engine's {tuple(buffer.shape)}"
            f" from {start} on"
        )
    buffer[start:end].copy_(values)
    if not torch.equal(buffer[start:end].cpu(), values):
        raise SteeringFault("the device does not hold the steering table that was copied to it")

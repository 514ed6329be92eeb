"""The steering table on a rank's device: its buffers on the layers, the loading of a table, and the filling
of a step. Both model runners and the driver's calls reach it through `worker_table`.
"""

from __future__ import annotations

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
from vsteer.engine.worker.layer import steer_layer
from vsteer.engine.worker.modules import Capture, Placed, Steering, shared_buffers
from vsteer.engine.worker.step import StepTable
from vsteer.errors import SteeringFault
from vsteer.operations import PLACES

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
    ) -> None:
        self.step_table = StepTable()
        self.captures = CaptureTable(capacity.captures)
        self._bank, self.token_cell = shared_buffers(capacity, hidden_size, max_tokens, device)
        self._chosen = torch.zeros(capacity.captures, dtype=torch.int32, device=device)
        self._cells_now: NDArray[np.int32] = np.zeros(max_tokens, np.int32)
        self._any_steered_before = False
        self._any_chosen_before = False
        self._layers: dict[int, Steering] = {}
        self.sha256 = ""  # of the table's file
        self.first_layers: NDArray[np.int32] = np.zeros(1, np.int32)
        # [layer, cell]: where something is added behind the layer
        self.acts: NDArray[np.bool_] = np.zeros((1, 1), bool)
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
            steer_layer(layer, self._layers[index], placed, self._captures.get(index))

    def load(self, path: Path) -> dict[str, Any]:
        """Replace the table by the one in `path`, and report what this rank holds then."""
        if self.step_table.open_keys:
            raise SteeringFault("a table cannot be replaced while steered requests are under way")
        arrays, fingerprints, sha = read_table_file(path)
        _replace(self._bank, torch.from_numpy(arrays["bank"]))
        for index, steering in self._layers.items():
            _replace(steering.row, torch.from_numpy(arrays["row"][index]))
            _replace(steering.scale, torch.from_numpy(arrays["scale"][index]))
        known = {"bank", "row", "scale"} | {key for module in self._placed for key in placed_keys(module)}
        if unknown := arrays.keys() - known:
            raise SteeringFault(f"a table with {sorted(unknown)} came to an engine that was started without")
        for module, of_layer in self._placed.items():
            for index, placed in of_layer.items():
                for key, buffer in zip(placed_keys(module), (placed.row, placed.size), strict=True):
                    # cells come first in `_replace`, places in the array
                    values = arrays[key][index].T if key in arrays else np.zeros((1, len(PLACES)))
                    _replace(buffer.T, torch.from_numpy(np.ascontiguousarray(values)).to(buffer.dtype))
        self.step_table = StepTable(fingerprints)
        self.sha256 = sha
        self.acts = (arrays["scale"] != 0).any(axis=-1)
        self.first_layers = first_layers(
            arrays["scale"], [arrays[row] for row, _ in map(placed_keys, self._placed) if row in arrays]
        )
        return {"sha256": sha, "layers": sorted(self._layers)}

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


def _replace(buffer: torch.Tensor, values: torch.Tensor) -> None:
    """Put `values` at the front of `buffer`, zeros behind them, and check what the device holds."""
    if values.shape[0] > buffer.shape[0] or values.shape[1:] != buffer.shape[1:]:
        raise SteeringFault(
            f"a table of shape {tuple(values.shape)} does not fit the engine's {tuple(buffer.shape)}"
        )
    buffer.zero_()
    buffer[: values.shape[0]].copy_(values)
    if not torch.equal(buffer[: values.shape[0]].cpu(), values):
        raise SteeringFault("the device does not hold the steering table that was copied to it")

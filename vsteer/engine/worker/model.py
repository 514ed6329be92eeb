"""What a steered model adds to a vLLM model class: the table's buffers, the loading of a table,
and the filling of a step. Families mix it in; both model runners reach the step through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import PPMissingLayer

from vsteer.engine.support import CONFIG_KEY, refuse_unproven
from vsteer.engine.table import PLACES, Capacity, read_table_file
from vsteer.engine.worker.capture import CaptureTable
from vsteer.engine.worker.layer import steer_layer
from vsteer.engine.worker.modules import Ablation, Capture, Steering, shared_buffers
from vsteer.engine.worker.step import StepTable
from vsteer.errors import SteeringFault


def steered(vllm_config: VllmConfig) -> bool:
    """Whether this engine is one of ours: others in the same process stay as they are."""
    return CONFIG_KEY in (vllm_config.additional_config or {})


class SteeredModel:
    """Mixed in front of a causal model whose decoder is `self.model.layers`.

    Without a vsteer section in the engine's configuration it is the stock model, layer for layer.
    """

    model: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)  # type: ignore[call-arg]
        self.step_table: StepTable | None = None
        self._layers: dict[int, Steering] = {}
        self._ablations: dict[int, Ablation] = {}
        self._captures: dict[int, Capture] = {}
        if not steered(vllm_config):
            return
        refuse_unproven(vllm_config)
        if not vllm_config.use_v2_model_runner:
            from vsteer.patches import cpu_generator, v1_runner

            v1_runner.apply()
            if torch.get_default_device().type == "cpu":
                cpu_generator.apply()
        capacity = Capacity(**vllm_config.additional_config[CONFIG_KEY]["capacity"])
        device = torch.get_default_device()
        self._bank, self._token_cell = shared_buffers(
            capacity,
            vllm_config.model_config.get_hidden_size(),
            vllm_config.scheduler_config.max_num_batched_tokens,
            device,
        )
        self._cells_now: NDArray[np.int32] = np.zeros(self._token_cell.shape[0], np.int32)
        self._any_steered_before = False
        self._any_chosen_before = False
        self.captures = CaptureTable(capacity.captures)
        self._chosen = torch.zeros(capacity.captures, dtype=torch.int32, device=device)
        for index, layer in enumerate(self.model.layers):
            # under pipeline parallelism a rank has only some of the layers
            if not isinstance(layer, PPMissingLayer):
                self._layers[index] = Steering(self._bank, self._token_cell, capacity)
                if capacity.ablates:
                    self._ablations[index] = Ablation(self._bank, self._token_cell, capacity)
                if capacity.captures:
                    self._captures[index] = Capture(self._chosen, self._bank.shape[1])
                steer_layer(layer, self._layers[index], self._ablations.get(index), self._captures.get(index))
        self.step_table = StepTable()

    def get_model_state_cls(self) -> Any:
        """Model Runner V2's own place for per-step inputs."""
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        if self.step_table is None:
            return DefaultModelState
        from vsteer.engine.worker.model_state import SteeredModelState

        return SteeredModelState

    def load_table(self, path: Path) -> dict[str, Any]:
        """Replace the table by the one in `path`; says what this rank now holds."""
        if self.step_table is None:
            raise SteeringFault("this engine was started without a steering table")
        if self.step_table.open_keys:
            raise SteeringFault("a table cannot be replaced while steered requests are under way")
        arrays, fingerprints, sha = read_table_file(path)
        _replace(self._bank, torch.from_numpy(arrays["bank"]))
        for index, steering in self._layers.items():
            _replace(steering.row, torch.from_numpy(arrays["row"][index]))
            _replace(steering.scale, torch.from_numpy(arrays["scale"][index]))
        ablated = arrays["ablated"]
        if ablated.any() and not self._ablations:
            raise SteeringFault("a table that ablates came to an engine that was started without ablation")
        for index, ablation in self._ablations.items():
            # cells come first in `_replace`, places in the array
            rows = ablated[index].T if ablated.size else np.zeros((1, len(PLACES)), np.int32)
            _replace(ablation.row.T, torch.from_numpy(np.ascontiguousarray(rows)))
        self.step_table = StepTable(fingerprints)
        return {"sha256": sha, "layers": sorted(self._layers)}

    def add_request(self, request_id: str, extra_args: Mapping[str, Any] | None) -> None:
        assert self.step_table is not None
        self.step_table.add(request_id, extra_args)
        self.captures.add(request_id, extra_args)

    def remove_request(self, request_id: str) -> None:
        assert self.step_table is not None
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
        """The V1 runner tells nobody of arrivals and departures; its own table of requests does.

        It keeps preempted ones, and what was scheduled says who is back.
        """
        assert self.step_table is not None
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
        assert self.step_table is not None
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
            if self._token_cell.device.type == "cuda":
                # PyTorch's pinned allocator keeps the copy until the stream has read it
                source = source.pin_memory()
            self._token_cell.copy_(source, non_blocking=True)
        self._any_steered_before = any_steered

    def take_captured(self) -> None:
        """Fetch what the last step captured, before another one writes over it."""
        used = self.captures.used
        if not used:
            return
        slots = [capture.streams[:used] for _, capture in sorted(self._captures.items())]
        self.captures.take(torch.stack(slots).cpu().numpy())
        for capture in self._captures.values():
            # a layer that does not write is found out
            capture.streams.fill_(torch.nan)

    @property
    def captured_layers(self) -> list[int]:
        return sorted(self._captures)


def steered_model(model: nn.Module) -> SteeredModel | None:
    """The steered model behind whatever a runner wraps around it, None for a stock one."""
    inner = getattr(model, "unwrap", lambda: model)()
    if isinstance(inner, SteeredModel) and inner.step_table is not None:
        return inner
    return None


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

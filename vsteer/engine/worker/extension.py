"""What the driver can ask of every vLLM worker, by method name: load a table or add to it, report how far
requests were steered, hand over what was captured. vLLM mixes this class into its worker
(`worker_extension_cls`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import set_forward_context

from vsteer.engine.forks import ForkBlock, packed, unpacked
from vsteer.engine.worker.forks import ForkedPass
from vsteer.engine.worker.worker_table import WorkerTable, worker_table
from vsteer.errors import SteeringFault


class SteeringWorker:
    model_runner: Any
    vllm_config: Any

    def vsteer_load_table(self, path: str) -> dict[str, Any]:
        return self._vsteer_table().load(Path(path))

    def vsteer_extend_table(self, path: str, table_sha256: str) -> dict[str, Any]:
        return self._vsteer_table().extend(Path(path), table_sha256)

    def vsteer_collect(self, keys: Sequence[int]) -> list[list[int]]:
        return self._vsteer_table().step_table.collect(keys)

    def vsteer_captured(self, keys: Sequence[int]) -> dict[str, Any]:
        """The streams of these requests: layers of this rank, positions a key, and float32 bytes."""
        table = self._vsteer_table()
        table.take_captured()
        found = table.captures.collect(keys)
        # under tensor parallelism every rank has the whole stream: one is enough
        if get_tensor_model_parallel_rank() != 0:
            return {"layers": [], "positions": [], "streams": b""}
        rows = [of_position[position] for of_position in found for position in sorted(of_position)]
        return {
            "layers": table.captured_layers,
            "positions": [sorted(of_position) for of_position in found],
            "streams": b"".join(row.tobytes() for row in rows),
        }

    def vsteer_forks(self, table_sha256: str, payload: bytes) -> bytes:
        """The scores of blocks by the forked pass, both as they travel."""
        table, model = self._vsteer_table(), self.model_runner.get_model()
        if table.sha256 != table_sha256:
            raise SteeringFault("forks came with cells of another steering table")
        model = getattr(model, "unwrap", lambda: model)()
        # routed experts are found through the context that vLLM's own steps run in
        with table.lent() as token_cell, set_forward_context(None, self.vllm_config):
            forked = ForkedPass(model, token_cell, table.first_layers, table.acts)
            return packed(forked.compute(unpacked(payload, ForkBlock)))

    def vsteer_recomputed(self) -> int:
        return self._vsteer_table().step_table.recomputed

    def _vsteer_table(self) -> WorkerTable:
        table = worker_table(self.model_runner.get_model())
        if table is None:
            raise SteeringFault("this worker runs a model without steering: the plugin was not loaded in it")
        return table

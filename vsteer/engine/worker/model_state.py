"""Model Runner V2: the step's token cells, filled in the place that vLLM gives a model for its inputs."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from vsteer.engine.worker.worker_table import WorkerTable, worker_table
from vsteer.errors import SteeringFault


class SteeredModelState(DefaultModelState):
    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        self._table.add_request(new_req_data.req_id, params.extra_args if params else None)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self._table.remove_request(req_id)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        # profiling and warm-up run made-up requests, which add_request never saw; a real batch is filled
        # whole, and an unknown request in it is an error
        if input_batch.req_ids[0] in req_states.req_id_to_index:
            self._table.fill_step(
                input_batch.req_ids, input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens
            )
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs

    @property
    def _table(self) -> WorkerTable:
        table = worker_table(self.model)
        if table is None:
            raise SteeringFault("the model under the steered state is not a steered one")
        return table

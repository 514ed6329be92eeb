"""What a steered model adds to a vLLM model class; the families mix it in."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import PPMissingLayer

from vsteer.engine.support import CONFIG_KEY, refuse_unproven
from vsteer.engine.table import Capacity
from vsteer.engine.worker.layer import SteeredLayer
from vsteer.engine.worker.unembedding import unembed_in_float32
from vsteer.engine.worker.worker_table import WorkerTable
from vsteer.errors import SteeringFault


class SteeredModel:
    """Mixed in front of a causal model whose decoder is `self.model.layers`.

    Without a vsteer section in the engine's configuration it is the stock model, layer for layer: other
    engines in the same process stay as they are.
    """

    model: Any
    vsteer_table: WorkerTable | None = None
    # what is mixed in front of its layers
    steered_layer: type[SteeredLayer] = SteeredLayer

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)  # type: ignore[call-arg]
        section = (vllm_config.additional_config or {}).get(CONFIG_KEY)
        if section is None:
            return
        refuse_unproven(vllm_config)
        device = torch.get_default_device()
        if not vllm_config.use_v2_model_runner:
            from vsteer.patches import cpu_generator, v1_runner

            v1_runner.apply()
            if device.type == "cpu":
                cpu_generator.apply()
        if device.type == "cpu" and not vllm_config.model_config.enforce_eager:
            from vsteer.patches import compiled_order

            compiled_order.apply()
        if vllm_config.model_config.dtype != torch.float32:
            unembed_in_float32(self)
        self.vsteer_table = WorkerTable(
            {
                index: layer
                for index, layer in enumerate(self.model.layers)
                # under pipeline parallelism a rank has only some of the layers
                if not isinstance(layer, PPMissingLayer)
            },
            Capacity(**section["capacity"]),
            vllm_config.model_config.get_hidden_size(),
            vllm_config.scheduler_config.max_num_batched_tokens,
            device,
            self.steered_layer,
        )

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """What goes into the first layer."""
        stream: torch.Tensor = self.model.embed_input_ids(tokens)
        return stream

    def compute_logits(self, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        logits: torch.Tensor | None = super().compute_logits(*args, **kwargs)  # type: ignore[misc]
        if self.vsteer_table is not None and logits is not None and logits.dtype != torch.float32:
            raise SteeringFault(f"logits came as {logits.dtype}, where rows say that they are float32")
        return logits

    def get_model_state_cls(self) -> Any:
        """Model Runner V2's own place for per-step inputs."""
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        if self.vsteer_table is None:
            return DefaultModelState
        from vsteer.engine.worker.model_state import SteeredModelState

        return SteeredModelState

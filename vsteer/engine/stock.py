"""Stock vLLM behind the same `run`, to measure steering against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vsteer.engine.options import EngineOptions
from vsteer.engine.start import engine_environment
from vsteer.protocol import Request


class StockEngine:
    """vLLM as it comes: no plugin, no steering."""

    def __init__(self, model: str, dtype: str, options: EngineOptions) -> None:
        # the plugin stays out of every process of this engine
        with engine_environment(options, plugins=""):
            from vllm import LLM

            self._llm: Any = LLM(
                model,
                trust_remote_code=False,
                dtype=dtype,
                max_model_len=options.max_model_len,
                max_num_seqs=options.max_num_seqs,
                block_size=32,
                kv_cache_memory_bytes=int((options.kv_cache_gib or 1) * 2**30),
                enable_prefix_caching=options.prefix_caching,
                disable_log_stats=True,
            )

    def run(self, requests: Sequence[Request]) -> Iterator[Any]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=list(r.prompt.token_ids)) for r in requests]
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=r.max_tokens,
                ignore_eos=r.ignore_eos,
                detokenize=False,
                logprob_token_ids=list(r.logprob_token_ids) or None,
                logprobs=None if r.logprob_token_ids else 0,
            )
            for r in requests
        ]
        yield from self._llm.generate(prompts, params, use_tqdm=False)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()

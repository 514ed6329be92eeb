"""The vLLM engine: requests in, results out one by one, bounded in flight, each steered on its own.

A process has one engine, which loads its model once and the whole grid's table before requests run. A result
is yielded only after the workers' record shows that its span was steered to the last position.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.engine.answers import merged_records, proven_steered_tokens, result_of, sampling_params
from vsteer.engine.captures import CaptureAdmission, joined_streams
from vsteer.engine.death_watch import DeathWatch
from vsteer.engine.forks import (
    BlockCollector,
    BlockForks,
    ForkCollector,
    ForkScores,
    OpenBlock,
    packed,
    scores_of_ranks,
)
from vsteer.engine.options import EngineOptions, why_no_forks
from vsteer.engine.proof.canary import prove_steering
from vsteer.engine.start import check_start, engine_config, engine_environment, engine_info, starting
from vsteer.engine.support import has_gpu
from vsteer.engine.table import Capacity, SteeringTable
from vsteer.engine.worker.capture import CaptureSpec
from vsteer.engine.worker.step import CellSpan
from vsteer.errors import EngineError, SteeringFault, UnsupportedError
from vsteer.protocol import (
    Block,
    BlockScores,
    Engine,
    Request,
    Result,
    Steering,
    Vectors,
)

# How long finished results may wait for the workers' record of them, in seconds and in number.
COLLECT_SECONDS = 0.2
COLLECT_RESULTS = 1024


class VllmEngine(Engine):
    """Stock vLLM with the vsteer plugin."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        options: EngineOptions | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        options = options or EngineOptions()
        self.capacity = capacity or Capacity()
        check_start(model, revision)
        with engine_environment(options):
            # vllm reads its environment at import
            from vllm.v1.engine.llm_engine import LLMEngine

            config = engine_config(
                options,
                self.capacity,
                model=model,
                revision=revision,
                dtype=dtype,
                quantization=quantization,
                kv_cache_dtype=kv_cache_dtype,
            )
            with starting():
                self._llm = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        self.tokenizer: Any = self._llm.get_tokenizer()
        forks = why_no_forks(options, kv_cache_dtype, has_gpu()) is None
        self.info = engine_info(config, forks)
        self._max_in_flight = 2 * options.max_num_seqs + 64
        self._table: SteeringTable | None = None
        self._table_sha256 = ""
        self._in_flight: dict[str, _Flight] = {}
        self._watch = DeathWatch(self._llm.engine_core)
        self._captures = CaptureAdmission(self.capacity.captures)
        self.steps = 0
        self._numbers = itertools.count(1)
        # without room it takes no request
        self._room = config.scheduler_config.max_num_batched_tokens if self.info.forks else 0
        self._forks, self._blocks = ForkCollector(self._room), BlockCollector(self._room)
        # how many requests were computed as forks
        self.forked = 0
        try:
            prove_steering(self, self.capacity)
        except BaseException:
            self.close()
            raise

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        if self.under_way():
            raise SteeringFault("load() was called while requests are under way")
        layers = self.info.layers
        table = SteeringTable.build(vectors, steerings, layers, self.info.hidden_size, self.capacity)
        with tempfile.TemporaryDirectory(prefix="vsteer-") as folder:
            path = Path(folder, "table.safetensors")
            table.save(path)
            answers = self._rpc("vsteer_load_table", str(path))
        if len({answer["sha256"] for answer in answers}) != 1:
            raise SteeringFault("the workers hold different steering tables")
        held = {layer for answer in answers for layer in answer["layers"]}
        if held != set(range(layers)):
            raise SteeringFault(f"no worker steers layers {sorted(set(range(layers)) - held)}")
        self._table, self._table_sha256 = table, answers[0]["sha256"]

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield results as they finish. Leaving the loop early aborts what is in flight."""
        waiting = iter(requests)
        held: Request | None = None
        finished: list[tuple[_Flight, Any]] = []
        last_collect = time.monotonic()
        more = True
        try:
            while more or self._in_flight or self._forks.blocks:
                while more and len(self._in_flight) - len(finished) < self._max_in_flight:
                    request, held = held or next(waiting, None), None
                    if request is None:
                        more = False
                    elif not self._captures.has_room(request) or (
                        self._forks.takes(request) and self._forks.enough(request)
                    ):
                        held = request
                        break
                    elif failed := self._take(request):
                        yield failed
                # while the engine is merely full, more may come that belongs to the pass
                if (held or not more) and self._forks.enough(held):
                    yield from self._compute_forks()
                if not self._in_flight:
                    continue
                if len(finished) < len(self._in_flight):
                    finished += self._step()
                idle = len(finished) == len(self._in_flight)
                late = time.monotonic() - last_collect > COLLECT_SECONDS
                many = len(finished) >= COLLECT_RESULTS
                large = self._captures.must_collect(flight.request for flight, _ in finished)
                if finished and (idle or late or many or large):
                    results, finished = self._collect(finished), []
                    last_collect = time.monotonic()
                    yield from results
        finally:
            self._abort()

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        """As forks of one unsteered pass each; a block that no pass has room for as requests."""
        try:
            for block in blocks:
                taken = BlockForks(block, [self._cell(steering) for steering in block.steerings])
                limits = self.info.vocab_size, self.info.max_model_len
                unsteered = itertools.islice(block.requests(), len(block.asked))
                if block.divergence and not self._blocks.takes(taken):
                    raise UnsupportedError(
                        f"{block.id} has {taken.open.nodes:,} tokens, and a forked pass here has room for "
                        f"{self._room:,}: the KL divergence is taken within one",
                        hint="take shorter texts, or an engine with forks and more max_num_batched_tokens",
                    )
                # a request says why it can't be served
                if not self._blocks.takes(taken) or any(one.invalid_because(*limits) for one in unsteered):
                    results = {result.id: result for result in self.run(block.requests())}
                    yield block, BlockScores.of(block, results)
                    continue
                self._blocks.blocks.append(taken)
                if self._blocks.enough():
                    yield from self._compute_blocks()
            yield from self._compute_blocks()
        finally:
            self._blocks.take()

    def table_sha256(self) -> str:
        return self._table_sha256

    def recomputed_tokens(self) -> int:
        """Positions of steered requests computed again after preemptions, since the table was loaded.

        There are many of them where the KV memory is too small for max_num_seqs.
        """
        counts: list[int] = self._rpc("vsteer_recomputed")
        return max(counts)

    def under_way(self) -> list[str]:
        forks = (request.id for block in self._forks.blocks for request, _, _ in block.requests)
        return [*self._in_flight, *forks, *(taken.block.id for taken in self._blocks.blocks)]

    def kill(self) -> None:
        for process in self._watch.processes():
            process.kill()

    def exit_codes(self) -> list[int | None]:
        return self._watch.exit_codes()

    def close(self) -> None:
        self._watch.close()
        self._llm.engine_core.shutdown()

    def _take(self, request: Request) -> Result | None:
        """Keep a request for the next forked pass or hand it to vLLM; one that can't run fails alone."""
        reason = request.invalid_because(self.info.vocab_size, self.info.max_model_len)
        if reason := reason or self._captures.refusal(request):
            return Result(request.id, "error", error=reason)
        span = self._cell_span(request)
        if not self._forks.takes(request):
            return self._submit(request, span)
        self._forks.add(request, *((span.cell, (span.start, span.end)) if span else (0, (0, 0))))
        return None

    def _submit(self, request: Request, span: CellSpan | None) -> Result | None:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import TokensPrompt

        if request.id in self._in_flight:
            raise SteeringFault(f"two requests under way are both named {request.id!r}")
        capture = CaptureSpec(next(self._numbers), request.capture) if request.capture else None
        extra_args = {
            **(span.as_extra_args() if span else {}),
            **(capture.as_extra_args() if capture else {}),
        }
        try:
            params = sampling_params(request, extra_args)
            # The name is never used again, since the V1 runner distinguishes requests by their names alone.
            name = f"{request.id}#{next(self._numbers)}"
            with self._watch.alive():
                inside = self._llm.add_request(
                    name, TokensPrompt(prompt_token_ids=list(request.prompt.token_ids)), params
                )
        # from vLLM 0.27 on, VLLMValidationError is not a ValueError any more
        except (ValueError, VLLMValidationError) as error:
            return Result(request.id, "error", error=f"vLLM refuses it: {error}")
        self._in_flight[request.id] = _Flight(request, span, capture, inside)
        self._captures.begin(request)
        return None

    def _cell(self, steering: Steering | None) -> int:
        """0 for what is unsteered."""
        if steering is None or not steering.acting_terms:
            return 0
        if self._table is None:
            raise SteeringFault("a steered request came before load()")
        return self._table.cell_of(steering)

    def _cell_span(self, request: Request) -> CellSpan | None:
        cell = self._cell(request.steering)
        if not cell:
            return None
        assert request.steering is not None
        assert self._table is not None
        start, end = request.prompt.span(request.steering.positions)
        return CellSpan(next(self._numbers), cell, self._table.fingerprints[cell], start, end)

    def _compute_forks(self) -> Iterator[Result]:
        blocks = self._forks.take()
        for block, scores in zip(blocks, self._fork_scores(blocks), strict=True):
            self.forked += len(block.requests)
            yield from block.results(scores)

    def _compute_blocks(self) -> Iterator[tuple[Block, BlockScores]]:
        # they are under way until their scores are there
        found = self._fork_scores([one.open for one in self._blocks.blocks])
        taken = self._blocks.take()
        for one, scores in zip(taken, found, strict=True):
            self.forked += len(one.block.steerings) * len(one.block.asked)
            yield one.block, one.scores(scores)

    def _fork_scores(self, blocks: Sequence[OpenBlock]) -> list[ForkScores]:
        if not blocks:
            return []
        answers = self._rpc("vsteer_forks", self._table_sha256, packed([block.closed() for block in blocks]))
        self.steps += 1
        return scores_of_ranks(answers)

    def _step(self) -> list[tuple[_Flight, Any]]:
        with self._watch.alive():
            outputs = self._llm.step()
        self.steps += 1
        finished = [
            (self._in_flight[output.request_id.rpartition("#")[0]], output)
            for output in outputs
            if output.finished
        ]
        for flight, _ in finished:
            self._captures.end(flight.request)
        return finished

    def _collect(self, finished: list[tuple[_Flight, Any]]) -> list[Result]:
        keys = [flight.span.key for flight, _ in finished if flight.span]
        records: dict[int, list[int]] = {}
        if keys:
            records = merged_records(keys, self._rpc("vsteer_collect", keys))
        captured: dict[int, NDArray[np.float32]] = {}
        if specs := [flight.capture for flight, _ in finished if flight.capture]:
            answers = self._rpc("vsteer_captured", [spec.key for spec in specs])
            captured = joined_streams(specs, answers, self.info)
        results = []
        for flight, output in finished:
            del self._in_flight[flight.request.id]
            results.append(self._result(flight, output, records, captured))
        return results

    def _result(
        self,
        flight: _Flight,
        output: Any,
        records: dict[int, list[int]],
        captured: dict[int, NDArray[np.float32]],
    ) -> Result:
        request, span, completion = flight.request, flight.span, output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            return Result(request.id, "error", error=f"vLLM ended it with {completion.finish_reason!r}")
        steered = 0
        if span is not None:
            tokens = len(request.prompt.token_ids), len(completion.token_ids)
            steered = proven_steered_tokens(request.id, span, *tokens, records[span.key])
        streams = captured[flight.capture.key] if flight.capture else None
        return result_of(request, output, self.tokenizer, steered, streams)

    def _abort(self) -> None:
        """Leave nothing behind in the engine, whatever ended the loop."""
        self._forks.take()
        if not self._in_flight:
            return
        flights, self._in_flight = list(self._in_flight.values()), {}
        self._captures = CaptureAdmission(self.capacity.captures)
        # a dead engine has nothing to forget, and the error of its death is being raised already
        with contextlib.suppress(EngineError):
            with self._watch.alive():
                self._llm.abort_request([flight.inside for flight in flights], internal=True)
            if keys := [flight.span.key for flight in flights if flight.span]:
                self._rpc("vsteer_collect", keys)
            if keys := [flight.capture.key for flight in flights if flight.capture]:
                self._rpc("vsteer_captured", keys)

    def _rpc(self, method: str, *args: Any) -> list[Any]:
        """The answer of every worker."""
        with self._watch.alive():
            answers: list[Any] = self._llm.collective_rpc(method, args=args)
        return answers


@dataclass(frozen=True)
class _Flight:
    request: Request
    span: CellSpan | None
    capture: CaptureSpec | None
    inside: str  # vLLM's own id of the request

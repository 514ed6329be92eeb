"""The forked pass: one unsteered pass over each prompt, and every configuration as a fork of it.

It runs on vLLM's own layers and weights, on all ranks in lockstep, beside vLLM's scheduler and its cache.

    unsteered  each prompt through all layers: its keys and values, and its stream where forks will join
    forked     layer by layer: the forks under way go through the layer as one batch, then those join that
               first act behind it, with the unsteered stream of their own tokens, steered there
    scored     the final norm, the unembedding and a log-softmax, where something is asked
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vsteer.engine.forks import EMBEDDED, KEPT_BYTES, ForkBlock, ForkScores
from vsteer.engine.worker.fork_attention import (
    ForkAttention,
    ForkBatch,
    ForkPrompt,
    LayerAttention,
    OwnPart,
    batch_of,
)
from vsteer.engine.worker.layer import norm_behind_attention
from vsteer.engine.worker.unembedding import reusing_logits
from vsteer.errors import SteeringFault
from vsteer.patches import forked_attention

# Logits that are held at a time. Rows wait until there are so many, since the unembedding is read as long for
# a few.
LOGITS_BYTES = 2**27

T = TypeVar("T")


@dataclass(frozen=True)
class _Fork:
    prompt: int
    place: int  # in its block
    cell: int
    begin: int  # its first own node
    span: tuple[int, int]
    joins: int  # behind which layer


@dataclass(frozen=True)
class _Asked:
    """What is asked behind the scored nodes of one fork, and where its answers go."""

    block: ForkBlock
    scores: ForkScores
    place: int | NDArray[np.bool_]
    # the unsteered pass's rows at the same nodes, where it is asked how far the fork is from them
    unsteered: torch.Tensor | None = None


class _Batch:
    """Forks that go through the layers together, the first `under_way` of them so far."""

    def __init__(
        self,
        forks: Sequence[_Fork],
        of: Sequence[ForkPrompt],
        acts: NDArray[np.bool_],
        attention: ForkBatch,
        device: torch.device,
    ) -> None:
        self.forks, self.of, self.acts, self.attention = forks, of, acts, attention
        self.steered_at = np.zeros_like(acts)
        both = list(zip(forks, of, strict=True))
        self.offsets = np.cumsum([0, *(one.nodes - fork.begin for fork, one in both)])
        cells = np.concatenate([_cells(fork, one.block) for fork, one in both])
        self.cells = torch.from_numpy(cells).to(device)
        self.positions = torch.cat([one.positions[fork.begin :] for fork, one in both])
        # where something is asked, and how many such rows come before each fork's
        self.rows = np.concatenate(
            [
                at + one.block.scored - fork.begin
                for (fork, one), at in zip(both, self.offsets.tolist(), strict=False)
            ]
        )
        self.rows_before = np.cumsum([0, *(len(one.block.scored) for one in of)])
        self.under_way = 0
        self.hidden: torch.Tensor | None = None
        self.residual: torch.Tensor | None = None

    def joining(self, layer: int) -> slice:
        end = self.under_way
        while end < len(self.forks) and self.forks[end].joins == layer:
            end += 1
        return slice(self.under_way, end)


class ForkedPass:
    """`model` is a causal model of vLLM's with steered layers and `token_cell` their buffer; `first_layers`
    says behind which layer each cell first acts, and `acts`, [layer, cell], where it acts behind a layer."""

    def __init__(
        self,
        model: Any,
        token_cell: torch.Tensor,
        first_layers: NDArray[np.int32],
        acts: NDArray[np.bool_],
    ) -> None:
        self._model, self._token_cell = model, token_cell
        self._first_layers, self._acts = first_layers, acts
        self._layers = list(model.model.layers)
        self._device = token_cell.device
        # vLLM set memory aside for steps of so many tokens
        self._room = len(token_cell)
        self._attention: list[ForkAttention] = []
        self._rows_at_once = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
        # behind the final norm, and what is asked there
        self._waiting: list[tuple[torch.Tensor, list[_Asked]]] = []
        # the same of the unsteered pass, by prompt, where forks are held against it
        self._unsteered_rows: dict[int, torch.Tensor] = {}
        self._kept_bytes = _kept_bytes_a_token(self._layers)

    def compute(self, blocks: Sequence[ForkBlock]) -> list[ForkScores]:
        """Block by block as many at once as what is kept of their prompts has room for."""
        together = _chunks(blocks, lambda block: len(block.tokens) * self._kept_bytes, KEPT_BYTES)
        return [scores for some in together for scores in self._computed(some)]

    def _computed(self, blocks: Sequence[ForkBlock]) -> list[ForkScores]:
        scores = [_no_scores(block) for block in blocks]
        self._attention, self._unsteered_rows = [], {}
        forks = [fork for n, block in enumerate(blocks) for fork in self._forks(n, block)]
        prompts = [self._prompt(n, block, forks) for n, block in enumerate(blocks)]
        with torch.inference_mode(), forked_attention.replaced(self._layers, self._attend):
            for chunk in _chunks(list(enumerate(prompts)), lambda one: one[1].nodes, self._room):
                self._unsteered(dict(chunk), scores)
            forks.sort(key=lambda one: (one.joins, one.prompt, one.begin))
            for batch in _chunks(forks, lambda one: prompts[one.prompt].nodes - one.begin, self._room):
                self._forked(batch, prompts, scores)
            self._answer()
        return scores

    def _attend(self, layer: int, module: Any) -> ForkAttention:
        self._attention.append(ForkAttention(LayerAttention(layer, module)))
        return self._attention[-1]

    def _begin(self, parts: Sequence[OwnPart], keeps: bool) -> ForkBatch:
        batch = batch_of(parts, [attention.of for attention in self._attention], keeps)
        for attention in self._attention:
            attention.batch = batch
        return batch

    def _forks(self, n: int, block: ForkBlock) -> Iterator[_Fork]:
        columns = (block.cells.tolist(), block.owns.tolist(), block.spans.tolist())
        for place, (cell, begin, (start, end)) in enumerate(zip(*columns, strict=True)):
            if cell:
                yield _Fork(n, place, cell, begin, (start, end), int(self._first_layers[cell]))

    def _prompt(self, n: int, block: ForkBlock, forks: Sequence[_Fork]) -> ForkPrompt:
        own = [fork for fork in forks if fork.prompt == n]
        return ForkPrompt(
            block,
            torch.from_numpy(block.positions).to(self._device),
            torch.from_numpy(block.sees).to(self._device),
            first=min((fork.begin for fork in own), default=len(block.tokens)),
            joins=frozenset(fork.joins for fork in own),
        )

    def _unsteered(self, prompts: dict[int, ForkPrompt], scores: Sequence[ForkScores]) -> None:
        offsets = np.cumsum([0, *(one.nodes for one in prompts.values())]).tolist()
        self._begin([OwnPart(one, 0) for one in prompts.values()], keeps=True).grow(len(prompts))
        self._token_cell.zero_()
        tokens = np.concatenate([one.block.tokens for one in prompts.values()])
        positions = torch.cat([one.positions for one in prompts.values()])
        hidden = self._model.embedded(torch.from_numpy(tokens).to(self._device))
        residual: torch.Tensor | None = None
        for layer in range(EMBEDDED, len(self._layers)):
            if layer != EMBEDDED:
                hidden, residual = self._layers[layer].unsteered(positions, hidden, residual)
            for one, at in zip(prompts.values(), offsets, strict=False):
                if layer in one.joins:
                    own = slice(at + one.first, at + one.nodes)
                    # a copy, so that the whole batch's can be freed
                    one.streams[layer] = (
                        hidden[own].clone(),
                        None if residual is None else residual[own].clone(),
                    )
        rows = np.concatenate(
            [at + one.block.scored for one, at in zip(prompts.values(), offsets, strict=False)]
        )
        own_rows = torch.from_numpy(rows).to(self._device)
        asked = [_Asked(one.block, scores[n], one.block.cells == 0) for n, one in prompts.items()]
        normed = self._ask(hidden[own_rows], None if residual is None else residual[own_rows], asked)
        lengths = [len(one.block.scored) for one in prompts.values()]
        for (n, one), scored in zip(prompts.items(), torch.split(normed, lengths), strict=True):
            if one.block.divergence[0]:
                self._unsteered_rows[n] = scored

    def _forked(
        self, forks: Sequence[_Fork], prompts: Sequence[ForkPrompt], scores: Sequence[ForkScores]
    ) -> None:
        """One batch of forks, in the order in which they join."""
        of = [prompts[fork.prompt] for fork in forks]
        attention = self._begin(
            [OwnPart(one, fork.begin) for fork, one in zip(forks, of, strict=True)], False
        )
        batch = _Batch(forks, of, self._acts[:, [fork.cell for fork in forks]], attention, self._device)
        for layer in range(forks[0].joins, len(self._layers)):
            if batch.under_way:
                self._through(layer, batch)
            self._join(layer, batch)
        if (batch.acts & ~batch.steered_at).any():
            raise SteeringFault("a fork went through a layer unsteered at which it is steered")
        assert batch.hidden is not None
        asked = [
            _Asked(one.block, scores[fork.prompt], fork.place, self._unsteered_rows.get(fork.prompt))
            for fork, one in zip(forks, of, strict=True)
        ]
        self._ask(batch.hidden, batch.residual, asked)
        # counted from what the layers' buffer holds
        held = self._token_cell[: len(batch.cells)].cpu().numpy()
        on = (held == batch.cells.cpu().numpy()) & (held > 0)
        for fork, one, at in zip(forks, of, batch.offsets.tolist(), strict=False):
            sees = one.block.sees[one.block.scored][:, fork.begin :]
            steered = sees & on[at : at + one.nodes - fork.begin]
            scores[fork.prompt].steered[fork.place] = steered.sum(1)

    def _through(self, layer: int, batch: _Batch) -> None:
        """A layer with the forks under way, behind the last one only the rows at which something is asked."""
        count, last = batch.under_way, layer == len(self._layers) - 1
        positions = batch.positions[: batch.offsets[count]]
        wanted = batch.rows[: batch.rows_before[count]]
        if batch.acts[layer, :count].any() or self._layers[layer].placed:
            hidden, residual = self._layers[layer].acting(positions, batch.hidden, batch.residual)
            batch.steered_at[layer, :count] = True
            if last:
                hidden, residual = hidden[wanted], residual[wanted]
        else:
            every = np.array_equal(wanted, np.arange(len(positions)))
            hidden, residual = self._unsteered_layer(
                layer, positions, batch.hidden, batch.residual, wanted if last and not every else None
            )
        batch.hidden, batch.residual = hidden, residual

    def _join(self, layer: int, batch: _Batch) -> None:
        """Put the forks that first act behind a layer with those under way."""
        new = batch.joining(layer)
        if new.start == new.stop:
            return
        begin, end = batch.offsets[new.start], batch.offsets[new.stop]
        hidden, residual = self._joining(layer, batch.forks[new], batch.of[new], batch.cells[begin:end])
        if layer != EMBEDDED:
            batch.steered_at[layer, new] = True
        if layer == len(self._layers) - 1 and residual is not None:
            wanted = batch.rows[batch.rows_before[new.start] : batch.rows_before[new.stop]] - begin
            hidden, residual = hidden[wanted], residual[wanted]
        batch.hidden = hidden if batch.hidden is None else torch.cat([batch.hidden, hidden])
        if residual is not None:
            batch.residual = residual if batch.residual is None else torch.cat([batch.residual, residual])
        batch.under_way = new.stop
        batch.attention.grow(new.stop)
        self._token_cell[: len(batch.cells)].copy_(batch.cells)

    def _unsteered_layer(
        self,
        layer: int,
        positions: torch.Tensor,
        hidden: torch.Tensor | None,
        residual: torch.Tensor | None,
        wanted: NDArray[np.int64] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer at which no fork is steered; what is behind its attention only for the wanted rows."""
        module: Any = self._layers[layer]
        if wanted is None:
            found: tuple[torch.Tensor, torch.Tensor] = module.unsteered(positions, hidden, residual)
            return found
        rows = torch.from_numpy(wanted).to(self._device)
        attention = self._attention[layer]
        attention.rows = rows
        try:
            with forked_attention.narrowed(norm_behind_attention(module), rows):
                found = module.unsteered(positions, hidden, residual)
        finally:
            attention.rows = None
        return found

    def _joining(
        self, layer: int, forks: Sequence[_Fork], of: Sequence[ForkPrompt], cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The unsteered stream of the tokens of forks that join behind a layer, steered there."""
        streams = [one.streams[layer] for one in of]
        begins = [fork.begin - one.first for fork, one in zip(forks, of, strict=True)]
        hidden = torch.cat([stream[begin:] for (stream, _), begin in zip(streams, begins, strict=True)])
        if layer == EMBEDDED:
            return hidden, None
        residual = torch.cat(
            [stream[begin:] for (_, stream), begin in zip(streams, begins, strict=True) if stream is not None]
        )
        # a layer steers by the cells at the front of its buffer
        self._token_cell[: len(cells)].copy_(cells)
        return hidden, self._layers[layer].steered(hidden, residual)

    def _ask(self, hidden: torch.Tensor, residual: torch.Tensor | None, asked: list[_Asked]) -> torch.Tensor:
        """Keep what is asked until there is enough; the scored nodes are the rows, one after another.

        Returns them behind the final norm.
        """
        normed = self._model.model.norm(hidden, residual)
        found: torch.Tensor = normed if residual is None else normed[0]
        self._waiting.append((found, asked))
        if sum(len(rows) for rows, _ in self._waiting) >= self._rows_at_once:
            self._answer()
        return found

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = torch.cat([rows for rows, _ in waiting])
        every = [one for _, asked in waiting for one in asked]
        blocks = [one.block for one in every]
        tokens = torch.from_numpy(np.concatenate([block.asked for block in blocks])).to(self._device)
        before = np.cumsum([0, *(len(block.scored) for block in blocks)])
        row_of = np.concatenate([block.asked_at + at for block, at in zip(blocks, before, strict=False)])
        parts = []
        kl = np.zeros(len(rows), np.float32)
        held = np.concatenate([np.full(len(one.block.scored), one.unsteered is not None) for one in every])
        against = [one.unsteered for one in every if one.unsteered is not None]
        unsteered = torch.cat(against) if against else rows[:0]
        # what forks are held against takes its room too
        at_once = max(1, self._rows_at_once // 4) if against else self._rows_at_once
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            places = begin + np.flatnonzero(held[begin : begin + at_once])
            with reusing_logits(self._model):
                # each rank takes part in each product
                base = self._log_probabilities(unsteered[: len(places)]) if len(places) else None
                logits = self._model.compute_logits(some)
            unsteered = unsteered[len(places) :]
            if logits is None:
                # under tensor parallelism some devices gather them on the first rank alone
                continue
            logits = logits.float()
            first, last = np.searchsorted(row_of, [begin, begin + len(some)])
            at = torch.from_numpy(row_of[first:last] - begin).to(self._device)
            wanted = logits[at, tokens[first:last]]
            compared = torch.from_numpy(places - begin).to(self._device)
            steered = logits[compared] if base is not None else None
            largest, top = logits.max(dim=-1)
            # in place, since a second tensor of that size takes longer than the sum
            sums = logits.sub_(largest[:, None]).exp_().sum(dim=-1).log()
            total = largest + sums
            if base is not None and steered is not None:
                steered = base - steered.sub_(total[compared, None])
                kl[places] = (base.exp_() * steered).sum(dim=-1).cpu().numpy()
            parts.append((wanted - total[at], top.int(), -sums))
        if not parts:
            return
        logprobs, tops, top_logprobs = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        done = 0
        for one, at in zip(every, before, strict=False):
            own, nodes = slice(done, done + len(one.block.asked)), slice(at, at + len(one.block.scored))
            one.scores.logprobs[one.place] = logprobs[own]
            one.scores.top[one.place] = tops[nodes]
            one.scores.top_logprob[one.place] = top_logprobs[nodes]
            if one.unsteered is not None:
                one.scores.kl[one.place] = kl[nodes]
            done += len(one.block.asked)

    def _log_probabilities(self, rows: torch.Tensor) -> torch.Tensor | None:
        logits = self._model.compute_logits(rows)
        return None if logits is None else torch.log_softmax(logits.float(), dim=-1)


def _kept_bytes_a_token(layers: Sequence[Any]) -> int:
    """What is kept of an unsteered token at most: its keys, values and stream at every layer."""
    stream: torch.Tensor = layers[0].input_layernorm.weight
    attention = layers[0].self_attn.attn
    numbers: int = 2 * attention.num_kv_heads * attention.head_size + 2 * stream.shape[-1]
    return len(layers) * numbers * stream.element_size()


def _no_scores(block: ForkBlock) -> ForkScores:
    forks, scored = len(block.cells), len(block.scored)
    kl = np.full((forks, scored if block.divergence[0] else 0), np.nan, np.float32)
    kl[block.cells == 0] = 0.0
    return ForkScores(
        np.full((forks, len(block.asked)), np.nan, np.float32),
        np.full((forks, scored), -1, np.int32),
        np.full((forks, scored), np.nan, np.float32),
        np.zeros((forks, scored), np.int32),
        kl,
    )


def _cells(fork: _Fork, block: ForkBlock) -> NDArray[np.int32]:
    """The cell of each of a fork's own tokens."""
    positions = block.positions[fork.begin :]
    inside = (positions >= fork.span[0]) & (positions < fork.span[1])
    return np.where(inside, fork.cell, 0).astype(np.int32)


def _chunks(parts: Sequence[T], size: Callable[[T], int], room: int) -> Iterator[list[T]]:
    """The parts in order, in lists of at most `room` tokens."""
    chunk: list[T] = []
    filled = 0
    for part in parts:
        if chunk and filled + size(part) > room:
            yield chunk
            chunk, filled = [], 0
        chunk.append(part)
        filled += size(part)
    if chunk:
        yield chunk

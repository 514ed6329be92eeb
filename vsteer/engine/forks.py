"""Blocks as the forked pass computes them: a prompt with its answers behind it, and its configurations.

A request that only asks for log-probabilities of given tokens generates nothing. All that have a prompt in
common are one block: the unsteered prompt is computed once, and each configuration where it differs, from its
span's start and its first acting layer on (`worker/forks.py`). Pure numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault
from vsteer.operations import PLACES
from vsteer.protocol import Block, BlockScores, Request, Result, expected_steered_tokens

# What is kept of unsteered prompts at a time: keys, values and streams. A single prompt may be more.
KEPT_BYTES = 2**29
# Behind this layer a fork joins that acts on the embedding or behind the first attention.
EMBEDDED = -1

Span = tuple[int, int]
Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class ForkBlock:
    """What the workers are handed. A node is a token of the prompt or of an answer."""

    tokens: NDArray[np.int64]  # the prompt's, then the answers', those that answers have in common once
    positions: NDArray[np.int64]
    sees: NDArray[np.bool_]  # [node, node]: itself and what stands before it
    scored: NDArray[np.int64]  # the nodes behind which something is asked
    asked: NDArray[np.int64]  # the tokens asked about, by the node behind which they would stand
    asked_at: NDArray[np.int64]  # for each of them, which of `scored`
    cells: NDArray[np.int32]  # one for each fork; 0 is the unsteered pass itself
    spans: NDArray[np.int64]  # [fork, 2]
    owns: NDArray[np.int64]  # the node from which on a fork computes for itself
    divergence: NDArray[np.bool_]  # [1]: whether it is asked how far forks are from the unsteered pass


@dataclass(frozen=True, eq=False)
class ForkScores:
    """What the workers hand back for one block."""

    logprobs: NDArray[np.float32]  # [fork, asked]
    top: NDArray[np.int32]  # [fork, scored]: the most likely token
    top_logprob: NDArray[np.float32]  # [fork, scored]
    steered: NDArray[np.int32]  # [fork, scored]: how many nodes up to there had the fork's cell written
    # [fork, scored], or [fork, 0] where it isn't asked: KL(unsteered, fork) of the next token, in nats
    kl: NDArray[np.float32]


class OpenBlock:
    """A block while its requests come in."""

    def __init__(self, prompt: tuple[int, ...], divergence: bool = False) -> None:
        self.prompt, self.divergence = prompt, divergence
        self.requests: list[tuple[Request, int, int]] = []  # with its fork and its node
        self._forks: dict[tuple[int, Span], int] = {}
        self._tokens, self._parents = list(prompt), list(range(-1, len(prompt) - 1))
        self._node: dict[tuple[int, ...], int] = {(): len(prompt) - 1}
        self._asked: dict[int, dict[int, None]] = {}  # by node

    def nodes_with(self, request: Request) -> int:
        """How many nodes there would be."""
        answer = request.prompt.token_ids[len(self.prompt) :]
        return self.nodes + sum(answer[:length] not in self._node for length in range(1, len(answer) + 1))

    def add(self, request: Request, cell: int, span: Span) -> None:
        node = self.ask(request.prompt.token_ids[len(self.prompt) :], request.logprob_token_ids)
        self.requests.append((request, self.fork(cell, span), node))

    def ask(self, answer: tuple[int, ...], tokens: Sequence[int]) -> int:
        """Ask for these tokens behind an answer; the node behind which they stand."""
        for length in range(1, len(answer) + 1):
            if answer[:length] not in self._node:
                self._node[answer[:length]] = len(self._tokens)
                self._tokens.append(answer[length - 1])
                self._parents.append(self._node[answer[: length - 1]])
        node = self._node[answer]
        self._asked.setdefault(node, {}).update(dict.fromkeys(tokens))
        return node

    def fork(self, cell: int, span: Span) -> int:
        """The place of a fork; the span of what is unsteered does not matter."""
        return self._forks.setdefault((cell, span if cell else (0, 0)), len(self._forks))

    @property
    def nodes(self) -> int:
        return len(self._tokens)

    @property
    def fork_nodes(self) -> int:
        """How many tokens all forks compute for themselves."""
        return sum(self.nodes - self._owns(start) for cell, (start, _) in self._forks if cell)

    def _owns(self, start: int) -> int:
        """The last token of the prompt is always a fork's own, since something is asked behind it."""
        return min(start, len(self.prompt) - 1)

    def closed(self) -> ForkBlock:
        sees = np.zeros((self.nodes, self.nodes), bool)
        positions = np.zeros(self.nodes, np.int64)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                sees[node] = sees[parent]
                positions[node] = positions[parent] + 1
            sees[node, node] = True
        forks = list(self._forks)
        return ForkBlock(
            np.array(self._tokens),
            positions,
            sees,
            np.array(list(self._asked)),
            np.array([token for asked in self._asked.values() for token in asked]),
            np.repeat(np.arange(len(self._asked)), [len(asked) for asked in self._asked.values()]),
            np.array([cell for cell, _ in forks], np.int32),
            np.array([span for _, span in forks]).reshape(-1, 2),
            np.array([self._owns(start) for _, (start, _) in forks]),
            np.array([self.divergence]),
        )

    def results(self, scores: ForkScores) -> list[Result]:
        """Each request's result, as the scheduler's requests have it, once its steered tokens are proven."""
        forks = list(self._forks)
        scored = {node: n for n, node in enumerate(self._asked)}
        columns: dict[int, dict[int, int]] = {}
        at = 0
        for node, asked in self._asked.items():
            columns[node] = dict(zip(asked, range(at, at + len(asked)), strict=True))
            at += len(asked)
        return [
            self._result(request, forks[fork], scores, fork, scored[node], columns[node])
            for request, fork, node in self.requests
        ]

    def _result(
        self,
        request: Request,
        of_fork: tuple[int, Span],
        scores: ForkScores,
        fork: int,
        scored: int,
        columns: Mapping[int, int],
    ) -> Result:
        cell, span = of_fork
        tokens = len(request.prompt.token_ids)
        steered = int(scores.steered[fork, scored])
        if steered != (expected_steered_tokens(span, tokens, 1) if cell else 0):
            raise SteeringFault(f"the fork of {request.id!r} steered {steered} tokens of the span {span}")
        top = int(scores.top[fork, scored])
        logprobs = {
            token: float(scores.logprobs[fork, columns[token]]) for token in request.logprob_token_ids
        }
        logprobs.setdefault(top, float(scores.top_logprob[fork, scored]))
        return Result(
            request.id,
            "ok",
            token_ids=(top,),
            finish_reason="length",
            logprobs=(logprobs,),
            prompt_tokens=tokens,
            # what the unsteered pass computed for all forks
            cached_tokens=self._owns(span[0]) if cell else 0,
            steered_tokens=steered,
            forked=True,
        )


class BlockForks:
    """A block as the workers take it, with the fork of each of its steerings."""

    def __init__(self, block: Block, cells: Sequence[int]) -> None:
        self.block = block
        self.open = OpenBlock(block.prompt.token_ids, block.divergence)
        for answer, tokens in block.asked:
            self.open.ask(answer, tokens)
        self._spans = block.spans()
        self._forks = [self.open.fork(cell, span) for cell, span in zip(cells, self._spans, strict=True)]
        self._steered = np.array(cells) > 0

    def scores(self, found: ForkScores) -> BlockScores:
        """The block's scores, once the steered tokens of each of its forks are proven."""
        tokens = np.array([len(self.block.prompt.token_ids) + len(answer) for answer, _ in self.block.asked])
        start, end = np.array(self._spans).reshape(-1, 2).T[:, :, None]
        expected = np.where(self._steered[:, None], np.maximum(0, np.minimum(end, tokens) - start), 0)
        steered = found.steered[self._forks]
        if (steered != expected).any():
            place = int(np.argwhere(steered != expected)[0, 0])
            raise SteeringFault(
                f"fork {place} of {self.block.id!r} did not steer the span {self._spans[place]}"
            )
        # what the unsteered pass computed for all forks, at each place that is read
        shared = np.minimum(start[:, 0], len(self.block.prompt.token_ids) - 1) * len(tokens)
        return BlockScores(
            found.logprobs[self._forks],
            np.where(self._steered, shared, 0),
            steered.sum(axis=1),
            forked=True,
            kl=found.kl[self._forks] if self.block.divergence else None,
        )


class ForkCollector:
    """Gathers the requests that can be forks, until there are enough for a pass."""

    def __init__(self, room: int) -> None:
        self._room = room  # tokens of one batch
        self.blocks: list[OpenBlock] = []

    def takes(self, request: Request) -> bool:
        return bool(
            request.answer_tokens is not None
            and request.logprob_token_ids
            and request.max_tokens == 1
            and not request.temperature
            and not request.capture
            and request.prompt_logprobs_from is None
            and len(request.prompt.token_ids) <= self._room
        )

    def add(self, request: Request, cell: int, span: Span) -> None:
        assert request.answer_tokens is not None
        prompt = request.prompt.token_ids[: len(request.prompt.token_ids) - request.answer_tokens]
        last = self.blocks[-1] if self.blocks else None
        # all answers of a prompt may be too many for one batch, while each of them has room
        if last is None or last.prompt != prompt or last.nodes_with(request) > self._room:
            self.blocks.append(OpenBlock(prompt))
        self.blocks[-1].add(request, cell, span)

    def enough(self, following: Request | None) -> bool:
        """Whether a pass is worth its while now; a prompt's requests are kept together if there is room."""
        if not self.blocks:
            return False
        if following is None:
            return True
        last = self.blocks[-1]
        requests = sum(len(block.requests) for block in self.blocks)
        together = following.prompt.token_ids[: len(last.prompt)] == last.prompt
        return requests >= (8 if together else 1) * self._room or (
            not together and _fills_a_batch(self.blocks, self._room)
        )

    def take(self) -> list[OpenBlock]:
        blocks, self.blocks = self.blocks, []
        return blocks


class BlockCollector:
    """Gathers blocks, until there are enough for a pass."""

    def __init__(self, room: int) -> None:
        self._room = room  # tokens of one batch
        self.blocks: list[BlockForks] = []

    def takes(self, block: BlockForks) -> bool:
        return block.open.nodes <= self._room

    def enough(self) -> bool:
        return _fills_a_batch([block.open for block in self.blocks], self._room)

    def take(self) -> list[BlockForks]:
        blocks, self.blocks = self.blocks, []
        return blocks


def _fills_a_batch(blocks: Sequence[OpenBlock], room: int) -> bool:
    """Whether the prompts, or their forks, are as many tokens as a batch has room for."""
    return max(sum(block.nodes for block in blocks), sum(block.fork_nodes for block in blocks)) >= room


def scores_of_ranks(answers: Sequence[bytes]) -> list[ForkScores]:
    """The scores of each block, once all ranks are found to have steered the same tokens."""
    first, *others = [unpacked(answer, ForkScores) for answer in answers]
    for other in others:
        if any((a.steered != b.steered).any() for a, b in zip(first, other, strict=True)):
            raise SteeringFault("the workers steered different tokens of a fork")
    return first


def packed(parts: Sequence[ForkBlock | ForkScores]) -> bytes:
    """Records of arrays as they travel to the workers and back: a header and bytes, no pickled code."""
    header, content = [], []
    for part in parts:
        arrays = [np.ascontiguousarray(getattr(part, one.name)) for one in fields(part)]
        header.append([[array.dtype.str, array.shape] for array in arrays])
        content += [array.tobytes() for array in arrays]
    head = json.dumps(header).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *content])


def unpacked(payload: bytes, kind: Callable[..., Part]) -> list[Part]:
    at = 8 + int.from_bytes(payload[:8], "little")
    parts = []
    for header in json.loads(payload[8:at]):
        arrays = []
        for dtype, shape in header:
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(payload, dtype, count, at).reshape(shape).copy())
            at += count * np.dtype(dtype).itemsize
        parts.append(kind(*arrays))
    return parts


def first_layers(scale: NDArray[np.float32], placed: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Behind which layer the forks of each cell join: what comes before is the unsteered pass's.

    `scale` is [layer, cell, term] and each of `placed`, a module's directions, [layer, place, cell].
    """
    layers = np.arange(len(scale))[:, None]

    def first(acts: NDArray[np.bool_], joins: NDArray[np.int64]) -> NDArray[np.int64]:
        earliest: NDArray[np.int64] = np.where(acts, joins, len(scale)).min(axis=0)
        return earliest

    found = [first((scale != 0).any(-1), layers)]
    for rows in placed:
        for n, place in enumerate(PLACES):
            # what acts within a layer joins in front of it
            found.append(first(rows[:, n] != 0, layers if place == "layer" else layers - 1))
    joins: NDArray[np.int32] = np.min(found, axis=0).astype(np.int32)
    return joins

"""What an engine is, what a request to it holds and what comes back: plain data, no torch, no vllm.

A request steers with an ordered list of terms over one span of absolute token positions. The span
is resolved here, once, from the original prompt's layout; nothing later guesses it from a length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault, UsageError
from vsteer.operations import OPERATIONS

# Past every position a request can reach, and still an int32.
OPEN_END = 2**31 - 1

Direction = NDArray[np.float32]
# vector name -> layer -> direction
Vectors = Mapping[str, Mapping[int, Direction]]
Positions = str | tuple[int, int]
POSITION_WORDS = ("all", "after_prompt", "after_user_turn", "last_prompt_token", "generated")


@dataclass(frozen=True)
class Term:
    """What is done with the vector's direction of `layer`, by an operation of vsteer/operations.py.

    Wherever several act, what is added comes first, so that nothing of an ablated direction is left there.
    """

    vector: str
    layer: int
    multiplier: float = 1.0
    operation: str = "add"

    @property
    def is_added(self) -> bool:
        """Whether it is summed with others; otherwise its operation has a module of its own in the graph."""
        return OPERATIONS[self.operation].module is None

    @property
    def acts_at_zero(self) -> bool:
        """Whether it changes the stream with a multiplier of 0 too."""
        operation = OPERATIONS.get(self.operation)
        return operation is not None and operation.acts_at_zero


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens and where its parts end.

    `template_length` counts the template with its generation prompt, without any forced answer
    prefix; `user_turn_length` counts up to the end of the user's last turn, without the generation
    prompt. A plain text prompt has neither a header nor a prefix: both are its length.
    """

    token_ids: tuple[int, ...]
    template_length: int
    user_turn_length: int

    @classmethod
    def plain(cls, token_ids: Iterable[int]) -> Prompt:
        ids = tuple(token_ids)
        return cls(ids, len(ids), len(ids))

    def span(self, positions: Positions) -> tuple[int, int]:
        """The half-open span of absolute positions that `positions` means on this prompt."""
        if isinstance(positions, tuple):
            start, end = positions
            if not 0 <= start < end:
                raise UsageError(
                    f"the span [{start}, {end}) is not a span of positions",
                    hint="give [start, end) with 0 <= start < end",
                )
            return start, min(end, OPEN_END)
        length = len(self.token_ids)
        match positions:
            case "all":
                return 0, OPEN_END
            case "after_prompt":
                return max(self.template_length - 1, 0), OPEN_END
            case "after_user_turn":
                return max(self.user_turn_length - 1, 0), OPEN_END
            case "last_prompt_token":
                return max(length - 1, 0), max(length, 1)
            case "generated":
                return length, OPEN_END
        near = get_close_matches(positions, POSITION_WORDS, n=1)
        raise UsageError(
            f"unknown positions {positions!r}",
            hint=(f"did you mean {near[0]!r}? " if near else "")
            + f"known: {', '.join(POSITION_WORDS)}, or a pair [start, end)",
        )


@dataclass(frozen=True)
class Steering:
    """The terms of one request and the one span of positions on which they act."""

    terms: tuple[Term, ...]
    positions: Positions = "all"

    @property
    def acting_terms(self) -> tuple[Term, ...]:
        """The terms that change anything: a multiplier of 0 adds nothing."""
        return tuple(term for term in self.terms if term.multiplier != 0 or term.acts_at_zero)


@dataclass(frozen=True)
class Request:
    id: str
    prompt: Prompt
    steering: Steering | None = None
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    # log-probabilities of exactly these tokens, at every generated position
    logprob_token_ids: tuple[int, ...] = ()
    # log-probabilities of the prompt's own tokens, from this position on
    prompt_logprobs_from: int | None = None
    # positions of the prompt whose stream is wanted after every layer, increasing
    capture: tuple[int, ...] = ()
    # How many tokens at the prompt's end are an answer's, where only log-probabilities are asked for.
    # Requests that share what stands before them may be computed as its forks; with None one never is.
    answer_tokens: int | None = None

    def invalid_because(self, vocab_size: int, max_model_len: int) -> str | None:
        """Why no engine can serve this request, or None."""
        ids = self.prompt.token_ids
        if not ids:
            return "the prompt is empty"
        for token in (*ids, *self.logprob_token_ids):
            if not 0 <= token < vocab_size:
                return f"token id {token} is outside the vocabulary of {vocab_size}"
        if self.max_tokens < 1:
            return f"max_tokens is {self.max_tokens}; at least 1 is needed"
        if any(not 0 <= position < len(ids) for position in self.capture) or any(
            a >= b for a, b in zip(self.capture, self.capture[1:], strict=False)
        ):
            return f"cannot capture the positions {self.capture} of a prompt of {len(ids)} tokens"
        if self.prompt_logprobs_from is not None and not 0 < self.prompt_logprobs_from < len(ids):
            return (
                f"no token of a prompt of {len(ids)} has a log-probability from position "
                f"{self.prompt_logprobs_from} on"
            )
        if len(ids) + self.max_tokens > max_model_len:
            return (
                f"too long: {len(ids)} prompt tokens + {self.max_tokens} to generate exceed "
                f"max_model_len {max_model_len}"
            )
        return None


@dataclass(frozen=True)
class Result:
    """One finished request. A failed one has status "error", a reason, and nothing else."""

    id: str
    status: Literal["ok", "error"]
    error: str | None = None
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    # for each generated position the log-probabilities of the sampled token and of every requested one
    logprobs: tuple[dict[int, float], ...] = field(default=())
    # those of the prompt's tokens from prompt_logprobs_from on
    prompt_logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    # the processed positions that lay in the span, those from cached blocks of the same steering included
    steered_tokens: int = 0
    # the stream at the captured positions, [position, layer, hidden]; steering included
    captured: NDArray[np.float32] | None = None
    # computed as a fork of an unsteered pass, and not through the scheduler
    forked: bool = False


@dataclass(frozen=True, eq=False)
class Block:
    """One prompt with given answers, and every steering under which they are scored."""

    id: str
    prompt: Prompt
    # the proper prefixes of the answers, and behind each the tokens whose log-probabilities are wanted
    asked: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    steerings: tuple[Steering | None, ...]  # their positions are on the prompt without its answers
    # whether it is also asked how far each steering is from the unsteered pass: as forks alone
    divergence: bool = False

    def spans(self) -> list[tuple[int, int]]:
        """Each steering's span of absolute positions, which an answer behind the prompt doesn't move."""
        known: dict[Positions | None, tuple[int, int]] = {None: (0, 0)}
        for positions in {steering.positions for steering in self.steerings if steering}:
            known[positions] = self.prompt.span(positions)
        return [known[steering.positions if steering else None] for steering in self.steerings]

    def requests(self) -> Iterator[Request]:
        """The same as requests, named by the place of the steering and of the prefix: `0.0`, `0.1`, ..."""
        prompt = self.prompt
        for place, (steering, span) in enumerate(zip(self.steerings, self.spans(), strict=True)):
            for n, (prefix, tokens) in enumerate(self.asked):
                yield Request(
                    f"{place}.{n}",
                    Prompt(prompt.token_ids + prefix, prompt.template_length, prompt.user_turn_length),
                    Steering(steering.terms, span) if steering else None,
                    logprob_token_ids=tokens,
                    answer_tokens=len(prefix),
                )


@dataclass(frozen=True, eq=False)
class BlockScores:
    """What came of a block, a line for each of its steerings. Counts are sums over the prefixes."""

    logprobs: NDArray[np.floating]  # [steering, token], in the order of `asked`
    cached_tokens: NDArray[np.integer]
    steered_tokens: NDArray[np.integer]
    # the steerings that failed, by their place, and why; their lines above mean nothing
    errors: Mapping[int, str] = field(default_factory=dict)
    forked: bool = False  # as in `Result`
    # Where the block asks for it: the KL divergence of the next-token distribution from the unsteered one, in
    # nats, over the whole vocabulary: [steering, prefix]
    kl: NDArray[np.floating] | None = None

    @classmethod
    def of(cls, block: Block, results: Mapping[str, Result]) -> BlockScores:
        """What the results of the block's requests, by their ids, come to."""
        logprobs, cached, steered, errors = [], [], [], {}
        for place in range(len(block.steerings)):
            row = [results[f"{place}.{n}"] for n in range(len(block.asked))]
            if failed := next((result for result in row if result.status != "ok"), None):
                errors[place] = failed.error or "no reason given"
            logprobs.append(
                [
                    math.nan if place in errors else result.logprobs[0][token]
                    for result, (_, tokens) in zip(row, block.asked, strict=True)
                    for token in tokens
                ]
            )
            cached.append(sum(result.cached_tokens for result in row))
            steered.append(sum(result.steered_tokens for result in row))
        forked = all(result.forked for result in results.values())
        return cls(np.array(logprobs), np.array(cached), np.array(steered), errors, forked)


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is, once its model is loaded."""

    kind: str  # as rows name it, such as vllm
    dtype: str
    model_type: str
    layers: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    # tokens in a block of the prefix cache; 0 without a cache
    cache_block: int = 0
    # whether questions with given answers are computed as forks
    forks: bool = False
    # whether it takes blocks; if not, each row is a request or several
    blocks: bool = False


@dataclass(frozen=True)
class EngineStanding:
    """How one engine of several fares."""

    number: int
    state: str
    host: str
    rows: int
    rows_per_second: float
    deaths: int
    last_error: str


class Engine(Protocol):
    """A loaded model that steers: the driver, several engines as one, the reference, the fakes.

    What has a default is of use only to an engine with processes of its own.
    """

    info: EngineInfo
    # grows whenever something comes back from the model, so that it stands still while an engine hangs
    steps: int

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        """Load every vector and every list of terms that requests will use."""

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield results one by one as they finish, in no promised order."""
        ...

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        """Yield each block with its scores as it is finished, in no promised order, if `info.blocks`."""
        raise SteeringFault(f"{type(self).__name__} takes no blocks")

    def table_sha256(self) -> str:
        """The hash of the table that its workers hold; empty without workers."""
        return ""

    def engines(self) -> list[EngineStanding]:
        """How each of several fares, from another thread too; empty for an engine by itself."""
        return []

    def under_way(self) -> list[str]:
        """The ids of the requests or blocks that have been taken and not answered."""
        return []

    def kill(self) -> None:
        """End an engine that hangs, from another thread: the run under way then fails."""
        return

    def exit_codes(self) -> list[int | None]:
        """How the engine's processes ended, None where one runs; -9: killed, as when memory is out."""
        return []

    def close(self) -> None:
        """Give back what the engine holds."""
        return


def expected_steered_tokens(span: tuple[int, int], prompt_tokens: int, completion_tokens: int) -> int:
    """How many processed positions lie in the span; the last generated token is never fed back."""
    return max(0, min(span[1], prompt_tokens + completion_tokens - 1) - span[0])

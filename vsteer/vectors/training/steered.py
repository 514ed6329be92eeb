"""The log-probabilities of responses under a vector, on the Hugging Face side, such that gradients reach it.

The stream behind block L gets factor x vector at the positions of each text's span, as in every engine here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vsteer.vectors.training.texts import Text

# How many tokens go through the model at once, padding included, and how many logits are made of them.
MOST_TOKENS = 4096
MOST_LOGITS = 2**27


class Scores:
    """What the steered model says of one text's response."""

    def __init__(self, logprobs: torch.Tensor, matches: torch.Tensor) -> None:
        self.logprobs = logprobs  # of each token of the response
        self.match = float(matches.float().mean())  # the share that is the most likely token

    @property
    def total(self) -> float:
        return float(self.logprobs.detach().sum())


def score(
    model: Any, layer: int, vector: torch.Tensor, texts: Sequence[Text], factors: Sequence[float]
) -> list[Scores]:
    """Each text under its factor times the vector, all in one pass."""
    longest = max(len(text.token_ids) for text in texts)
    # what fills a text up stands behind it, where nothing of the text sees it
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    amount = torch.zeros(len(texts), longest, 1, dtype=vector.dtype)
    rows: list[int] = []
    places: list[int] = []
    tokens: list[int] = []
    for row, (text, factor) in enumerate(zip(texts, factors, strict=True)):
        ids[row, : len(text.token_ids)] = torch.tensor(text.token_ids)
        amount[row, text.span[0] : text.span[1]] = factor
        count = len(text.token_ids) - text.start
        rows += [row] * count
        places += range(text.start - 1, len(text.token_ids) - 1)
        tokens += text.token_ids[text.start :]
    device = model.device
    with _steered(model, layer, amount.to(device) * vector), _unembedded(model, rows, places):
        logits = model(input_ids=ids.to(device), use_cache=False).logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.tensor(tokens, device=device)
    logprobs = torch.log_softmax(wide, dim=-1).gather(1, target[:, None])[:, 0]
    matches = wide.argmax(dim=-1) == target
    counts = [len(text.token_ids) - text.start for text in texts]
    parts = zip(torch.split(logprobs, counts), torch.split(matches, counts), strict=True)
    return [Scores(*part) for part in parts]


def batches(groups: Sequence[Sequence[Text]], vocabulary: int) -> Iterator[list[int]]:
    """The places of groups of texts that go through the model together, within what memory is meant for."""
    batch: list[int] = []
    rows = longest = scored = 0
    for place, texts in enumerate(groups):
        length = max(longest, *(len(text.token_ids) for text in texts))
        responses = sum(len(text.token_ids) - text.start for text in texts)
        full = (rows + len(texts)) * length > MOST_TOKENS or (scored + responses) * vocabulary > MOST_LOGITS
        if batch and full:
            yield batch
            batch, rows, scored = [], 0, 0
            length = max(len(text.token_ids) for text in texts)
        batch.append(place)
        rows, longest, scored = rows + len(texts), length, scored + responses
    if batch:
        yield batch


@contextmanager
def _steered(model: Any, layer: int, addition: torch.Tensor) -> Iterator[None]:
    def add(module: Any, inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        wide = torch.promote_types(stream.dtype, addition.dtype)
        changed = (stream.to(wide) + addition).to(stream.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.model.layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _unembedded(model: Any, rows: Sequence[int], places: Sequence[int]) -> Iterator[None]:
    """Logits are made of these tokens alone: [token, vocabulary]."""
    handle = model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0][rows, places],))
    try:
        yield
    finally:
        handle.remove()

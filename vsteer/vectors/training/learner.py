"""One layer's vector learned by gradient descent, a step at a time, so that it can stop and go on anywhere.

AdamW without weight decay, a learning rate that falls linearly to 0, clipped gradients. After each epoch the
vector's direction is judged on held-out pairs at the length that it will have, and the best epoch's is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from vsteer.errors import VectorError
from vsteer.identity import derived_seed
from vsteer.protocol import Direction
from vsteer.vectors.norms import length
from vsteer.vectors.training.losses import ntp_loss, reps_loss, reps_weight
from vsteer.vectors.training.settings import Settings
from vsteer.vectors.training.steered import batches, score
from vsteer.vectors.training.texts import Example, Pair, Text, both_signs

Row = dict[str, Any]
RANDOM_VECTORS = 5


@dataclass(frozen=True)
class Weighted(Example):
    weight: float = 1.0  # RePS's, from the unsteered model


@dataclass
class Progress:
    """Where the learning of one layer stands: all that is needed to go on."""

    vector: torch.Tensor
    average: torch.Tensor  # AdamW's, of the gradients and of their squares
    square: torch.Tensor
    best: torch.Tensor
    step: int = 0
    loss: float = 0.0  # summed over the epoch under way
    best_loss: float = float("inf")
    rows: list[Row] = field(default_factory=list)


class Learner:
    def __init__(self, model: Any, settings: Settings, learned: Sequence[Pair], held: Sequence[Pair]) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.model, self.settings = model, settings
        self.vocabulary, self.width = model.lm_head.weight.shape
        self.learned, self.held = self._weighted(learned), self._weighted(held)
        self.steps_an_epoch = -(-len(self.learned) // settings.batch_size)
        self.steps = settings.epochs * self.steps_an_epoch

    def begin(self, layer: int) -> Progress:
        noise = np.random.default_rng(derived_seed(self.settings.seed, layer, "start"))
        start = torch.from_numpy(noise.standard_normal(self.width)) * self.settings.start
        zero = torch.zeros(self.width, dtype=self._dtype)
        return Progress(start.to(self._dtype), zero, zero.clone(), zero.clone())

    def controls(self, layer: int, mean_difference: Direction, target: float) -> list[Row]:
        """What the held-out loss is without a vector, with random ones, and with the mean difference."""
        rows = [self._judged(layer, "unsteered", np.zeros(self.width), 0.0)]
        for n in range(RANDOM_VECTORS):
            noise = np.random.default_rng(derived_seed(self.settings.seed, layer, "random", n))
            rows.append(self._judged(layer, f"random {n}", noise.standard_normal(self.width), target))
        return [*rows, self._judged(layer, "mean difference", mean_difference.astype(np.float64), target)]

    def advance(
        self, layer: int, progress: Progress, mean_difference: Direction, target: float
    ) -> Iterator[Progress]:
        """Go on to the end, and yield after each step."""
        settings = self.settings
        vector = progress.vector.to(self.model.device).requires_grad_()
        optimizer = torch.optim.AdamW([vector], lr=settings.learning_rate, weight_decay=0.0)
        optimizer.state[vector] = {
            "step": torch.tensor(float(progress.step)),
            "exp_avg": progress.average.to(vector.device),
            "exp_avg_sq": progress.square.to(vector.device),
        }
        while progress.step < self.steps:
            epoch, place = divmod(progress.step, self.steps_an_epoch)
            if place == 0:
                progress.loss = 0.0
            order, factors = self._drawn(layer, epoch)
            chosen = order[place * settings.batch_size : (place + 1) * settings.batch_size]
            examples = [self.learned[n] for n in chosen]
            optimizer.zero_grad()
            for loss, _ in self.losses(layer, vector, examples, [factors[n] for n in chosen]):
                (loss / len(examples)).backward()  # type: ignore[no-untyped-call]
                progress.loss += float(loss.detach())
            norm = torch.nn.utils.clip_grad_norm_([vector], settings.clip)
            if not bool(torch.isfinite(norm)):
                raise VectorError(
                    f"the gradient at layer {layer}, epoch {epoch + 1}, step {place + 1} is not finite",
                    "try --dtype float32, or a smaller --learning-rate",
                )
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - progress.step / self.steps)
            optimizer.step()
            state = optimizer.state[vector]
            progress.vector = vector.detach().cpu()
            progress.average, progress.square = state["exp_avg"].cpu(), state["exp_avg_sq"].cpu()
            progress.step += 1
            if place + 1 == self.steps_an_epoch:
                self._end_epoch(layer, epoch + 1, progress, mean_difference, target)
            yield progress

    def _end_epoch(
        self, layer: int, epoch: int, progress: Progress, mean_difference: Direction, target: float
    ) -> None:
        direction = progress.vector.double().numpy()
        row = self._judged(layer, "learned", direction, target)
        along = float(direction @ mean_difference.astype(np.float64))
        cosine = along / (float(np.linalg.norm(direction)) * length(mean_difference))
        more = {"epoch": epoch, "train_loss": progress.loss / len(self.learned), "cosine": cosine}
        progress.rows.append({**row, **more, "trained_length": float(np.linalg.norm(direction))})
        if row["loss"] < progress.best_loss:
            progress.best, progress.best_loss = progress.vector.clone(), row["loss"]
        for each in progress.rows:
            each["chosen"] = each["loss"] == progress.best_loss

    def _judged(self, layer: int, name: str, direction: Any, target: float) -> Row:
        """The loss of the held-out pairs under the direction at the length `target`, with either sign."""
        norm = float(np.linalg.norm(direction))
        scaled = torch.from_numpy(direction * (target / norm if norm else 0.0)).to(self._dtype)
        loss = match = 0.0
        with torch.no_grad():
            ones = [1.0] * len(self.held)
            for part, matches in self.losses(layer, scaled.to(self.model.device), self.held, ones):
                loss, match = loss + float(part), match + matches
        count = len(self.held)
        return {
            "layer": layer, "vector": name, "epoch": None, "train_loss": None, "loss": loss / count,
            "match": match / count, "length": target, "trained_length": None, "cosine": None, "chosen": False,
        }  # fmt: skip

    def losses(
        self, layer: int, vector: torch.Tensor, examples: Sequence[Weighted], factors: Sequence[float]
    ) -> Iterator[tuple[torch.Tensor, float]]:
        """For each batch that goes through the model: the sums of its losses and of its shares of matches."""
        groups = [self._texts(example) for example in examples]
        for batch in batches(groups, self.vocabulary):
            texts = [text for place in batch for text in groups[place]]
            signed = [factors[at] * examples[at].sign for at in batch for _ in groups[at]]
            scores = iter(score(self.model, layer, vector, texts, signed))
            losses, matches = [], 0.0
            for place in batch:
                wanted = next(scores)
                matches += wanted.match
                if self.settings.method == "ntp":
                    losses.append(ntp_loss(wanted.logprobs))
                else:
                    weight = examples[place].weight
                    losses.append(reps_loss(wanted.logprobs, next(scores).logprobs, weight))
            yield torch.stack(losses).sum(), matches

    def _texts(self, example: Example) -> list[Text]:
        return [example.wanted] if self.settings.method == "ntp" else [example.wanted, example.unwanted]

    def _drawn(self, layer: int, epoch: int) -> tuple[list[int], list[float]]:
        """The order of an epoch's examples, and each example's factor."""
        drawn = np.random.default_rng(derived_seed(self.settings.seed, layer, epoch))
        order = drawn.permutation(len(self.learned)).tolist()
        return order, drawn.choice(self.settings.factors, len(self.learned)).astype(float).tolist()

    def _weighted(self, pairs: Sequence[Pair]) -> list[Weighted]:
        """Both signs of each pair, with the weights that the unsteered model gives them in RePS."""
        examples = [Weighted(example.pair, example.sign) for example in both_signs(pairs)]
        if self.settings.method == "ntp":
            return examples
        groups = [[pair.positive, pair.negative] for pair in pairs]
        none = torch.zeros(self.width, dtype=self._dtype, device=self.model.device)
        weighted = []
        with torch.no_grad():
            for batch in batches(groups, self.vocabulary):
                texts = [text for place in batch for text in groups[place]]
                totals = [one.total for one in score(self.model, 0, none, texts, [0.0] * len(texts))]
                for n, place in enumerate(batch):
                    positive, negative = totals[2 * n : 2 * n + 2]
                    plus, minus = examples[2 * place : 2 * place + 2]
                    k = self.settings.k
                    weighted.append(replace(plus, weight=reps_weight(positive, negative, k)))
                    weighted.append(replace(minus, weight=reps_weight(negative, positive, k)))
        return weighted

    @property
    def _dtype(self) -> torch.dtype:
        """The vector's: float32, or wider where the model is."""
        return torch.promote_types(self.model.dtype, torch.float32)

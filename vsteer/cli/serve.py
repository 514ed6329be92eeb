"""`vsteer serve MODEL`: an OpenAI server in which the name of a model is a steering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vsteer.cli.options import COUNT
from vsteer.errors import UsageError
from vsteer.terminal import echo

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--revision", help="Revision of a hub model.")
@click.option(
    "--steering", "file", type=_FILE, help="A YAML file: vectors, names of steerings, engine settings."
)
@click.option(
    "--vector", "vectors", multiple=True, metavar="NAME=FILE", help="A vector under a name. May be repeated."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Beyond loopback a key is needed.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option(
    "--dtype",
    type=click.Choice(("auto", "bfloat16", "float16", "float32")),
    default="auto",
    show_default=True,
)
@click.option("--max-model-len", type=COUNT, help="The longest prompt with its answer, in tokens.")
@click.option("--eager", is_flag=True, help="Start sooner, without compilation.")
@click.option(
    "--operation",
    "operations",
    multiple=True,
    metavar="NAME",
    help="Another operation than add, such as ablate. May be repeated.",
)
@click.option("--terms", type=COUNT, default=4, show_default=True, help="Vectors added at one layer.")
@click.option("--max-steerings", type=COUNT, default=1000, show_default=True, help="Different ones in all.")
@click.option(
    "--projections",
    is_flag=True,
    help="Say what an answer's stream has of a vector, token by token: `/project` in a chat.",
)
@click.option("--max-body-mib", type=COUNT, default=4, show_default=True, help="The largest request.")
def serve(
    model: str,
    revision: str | None,
    file: Path | None,
    vectors: tuple[str, ...],
    host: str,
    port: int,
    dtype: str,
    max_model_len: int | None,
    eager: bool,
    operations: tuple[str, ...],
    terms: int,
    max_steerings: int,
    projections: bool,
    max_body_mib: int,
) -> None:
    """Serve MODEL through OpenAI's API; the name of a model is a steering.

    `base` is the unsteered model, `base+refusal@13*1.5` adds 1.5 times the vector refusal behind layer 13,
    and a steering file gives steerings names of their own. Every answer says how many tokens were steered.
    The canary runs before the first request. Where VSTEER_API_KEY is set, clients must send that key.

    \b
    Example:
      vsteer serve smollm2-135m-instruct --vector sentiment=sentiment.safetensors
    """
    import asyncio
    import os

    from vsteer.serve.guard import KEY_VARIABLE, Guard
    from vsteer.serve.server import listen
    from vsteer.serve.server import serve as answer
    from vsteer.serve.settings import make_settings

    guard = Guard.at(host, os.environ.get(KEY_VARIABLE, ""), max_body_mib * 2**20)
    engine: dict[str, Any] = {"enforce_eager": eager or None, "max_model_len": max_model_len}
    settings = make_settings(
        model,
        revision,
        file=file,
        vectors=dict(map(_named_file, vectors)),
        engine={name: value for name, value in engine.items() if value is not None},
        operations=operations,
        terms=terms,
        max_steerings=max_steerings,
        projections=projections,
        dtype=dtype,
        guard=guard,
    )
    with listen(host, port) as sock:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{sock.getsockname()[1]}/v1"
        echo(f"... {model}: loading it into vLLM", err=True)
        asyncio.run(answer(settings, sock, lambda: echo(f"serving  {address}")))


def _named_file(written: str) -> tuple[str, Path]:
    name, found, path = written.partition("=")
    if not found or not name or not path:
        raise UsageError(
            f"expected NAME=FILE, found {written[:100]!r}", "such as refusal=refusal.safetensors"
        )
    return name, Path(path)

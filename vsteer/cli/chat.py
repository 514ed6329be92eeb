"""`vsteer chat MODEL`: the steered answer beside the unsteered one, in the terminal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from vsteer.cli.options import COUNT
from vsteer.errors import UsageError
from vsteer.terminal import echo


@click.command()
@click.argument("model", required=False)
@click.option("--vector", required=True, help="The vector's file; with --server, its name there.")
@click.option("--server", metavar="URL", help="Speak to a running `vsteer serve` instead of loading MODEL.")
@click.option("--layer", help="Where it acts at first, such as 13 or 10..16; by default the middle layer.")
@click.option("--times", default="1", show_default=True, help="How often the vector is added at first.")
@click.option("--max-tokens", type=COUNT, default=200, show_default=True, help="The longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--eager", is_flag=True, help="Start sooner, without compilation.")
def chat(
    model: str | None,
    vector: str,
    server: str | None,
    layer: str | None,
    times: str,
    max_tokens: int,
    temperature: float,
    eager: bool,
) -> None:
    """Chat with MODEL, steered and unsteered side by side.

    Lines that begin with a slash turn the steering: /layer 13, /times 1.5, /off; /help lists all of them.
    /project 20 colours each token by what the stream behind layer 20 has of the vector.
    With --server the model and its vectors are the server's, and the key is read from VSTEER_API_KEY.

    \b
    Example:
      vsteer chat smollm2-135m-instruct --vector sentiment.safetensors --layer 20
    """
    import httpx
    from rich.console import Console

    from vsteer.scoring.endpoint import http_address
    from vsteer.serve.chat import TIMEOUT, Chat, first_dial, vectors_of
    from vsteer.serve.guard import KEY_VARIABLE, Guard

    if (model is None) == (server is None):
        raise UsageError("give a MODEL to load, or --server URL", "such as --server http://127.0.0.1:8000")

    async def chat_at(url: str, name: str) -> None:
        key = os.environ.get(KEY_VARIABLE, "")
        headers = {"authorization": f"Bearer {key}"} if key and server else {}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT) as client:
            dial = first_dial(await vectors_of(client), name, layer, times)
            console = Console()
            await Chat(client, dial, console, _line, max_tokens=max_tokens, temperature=temperature).go_on()

    if server is not None:
        given = server.strip().rstrip("/").removesuffix("/v1")
        address = http_address(given, "--server", "http://127.0.0.1:8000")
        asyncio.run(chat_at(str(address), vector))
        return
    from vsteer.serve.server import answering, listen
    from vsteer.serve.settings import make_settings

    name = Path(vector).stem
    engine = {"enforce_eager": eager}
    settings = make_settings(
        str(model), vectors={name: Path(vector)}, engine=engine, projections=True, guard=Guard()
    )

    async def chat_here() -> None:
        with listen("127.0.0.1", 0) as sock:
            async with answering(settings, sock):
                await chat_at(f"http://127.0.0.1:{sock.getsockname()[1]}", name)

    echo(f"... {model}: loading it into vLLM", err=True)
    asyncio.run(chat_here())


async def _line() -> str | None:
    """The user's next line."""
    try:
        return await asyncio.to_thread(input, "> ")
    except EOFError:
        return None

"""The server: vLLM's engine and application, started with our plugin, behind our names and proofs."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from vsteer.engine.start import check_start, engine_config, engine_environment, engine_info, starting
from vsteer.engine.vllm_compat import TESTED, installed_version, may_pass
from vsteer.errors import EngineError, UnsupportedError, UsageError
from vsteer.models.hugging_face import load_tokenizer
from vsteer.prompts.chat import chat
from vsteer.prompts.template import is_chat
from vsteer.protocol import EngineInfo, Steering
from vsteer.serve.app import Served, SteeringApp
from vsteer.serve.asked import Asked
from vsteer.serve.captures import Captures
from vsteer.serve.client import SteeringClient
from vsteer.serve.conversation import layout
from vsteer.serve.names import BASE
from vsteer.serve.projection import Projector
from vsteer.serve.proof import Health, ProofEngine
from vsteer.serve.served_table import ServedTable
from vsteer.serve.settings import Settings

# How long answers that are under way may take once the server is to end.
GRACE_SECONDS = 5
DEAD_SECONDS = 1.0


@dataclass(frozen=True)
class Running:
    """A server that has proven itself and can be asked."""

    app: SteeringApp
    client: SteeringClient
    proof: ProofEngine
    health: Health
    table: ServedTable
    info: EngineInfo


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """The engine and its application, within the loop that serves it."""
    _refuse_untried_server()
    folder = str(settings.folder)
    check_start(folder, None)
    tokenizer = load_tokenizer(folder)
    if is_chat(tokenizer):
        # vLLM renders it in this process, so what loops or eats memory is found first, in another
        chat(tokenizer, [{"role": "user", "content": "Hello"}])
    with engine_environment(settings.options):
        from vllm.v1.engine.async_llm import AsyncLLM

        config = engine_config(
            settings.options,
            settings.capacity,
            model=folder,
            revision=None,
            dtype=settings.dtype,
            quantization=None,
            kv_cache_dtype="auto",
        )
        with starting():
            engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    try:
        client = SteeringClient(engine)
        info = engine_info(config, forks=False)
        table = ServedTable(client.rpc, info, settings.capacity)
        table.know(settings.catalogue.vectors)
        captures = Captures(client.rpc, info)
        proof = ProofEngine(client, table, captures, info, asyncio.get_running_loop())
        health = Health(proof, client)
        await health.prove_all(settings.capacity)
        for steering in settings.catalogue.steerings.values():
            await table.admit(steering)
        inner = await _vllm_app(folder, client)
        project = None
        if settings.capacity.captures:
            projector = Projector(client, captures, info, settings.catalogue.vectors, tokenizer)
            project = partial(_project, projector)
        served = Served(partial(_admit, table), health.fault, partial(layout, tokenizer), project)
        app = SteeringApp(inner, served, settings.catalogue, settings.guard)
        yield Running(app, client, proof, health, table, info)
    finally:
        engine.shutdown()


def listen(host: str, port: int) -> socket.socket:
    """A socket, before the model is loaded, so that a port that is taken is found out at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"can't listen on {host[:60]}, port {port}: {error.strerror or error}",
            "give another --port or --host",
        ) from None


@asynccontextmanager
async def answering(settings: Settings, sock: socket.socket) -> AsyncIterator[Running]:
    """A server that answers on a socket, whose end is this block's; signals are left to whoever runs it."""
    import uvicorn

    async with running(settings) as server:
        config = uvicorn.Config(
            server.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        http = uvicorn.Server(config)
        http.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(http.serve(sockets=[sock]))
        try:
            yield server
        finally:
            http.should_exit = True
            await serving


async def serve(settings: Settings, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer until the process is told to end; an engine that dies ends it too."""
    over = asyncio.Event()
    async with answering(settings, sock) as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        on_ready()
        while not over.is_set() and not server.client.errored:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), DEAD_SECONDS)
        died = server.client.errored
    if died:
        raise EngineError(
            "the engine died",
            hint="its own message is above; if memory ran out, give a smaller max_num_seqs",
        )


async def _vllm_app(folder: str, client: SteeringClient) -> Any:
    """vLLM's application with its one model, as `vllm serve` makes it."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = ["--model", folder, "--served-model-name", BASE, "--disable-log-stats", "--disable-fastapi-docs"]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    tasks = ("generate",)
    app = build_app(args, tasks, client.model_config)
    await init_app_state(client, app.state, args, tasks)
    return app


async def _admit(table: ServedTable, steering: Steering) -> tuple[int, str]:
    with _alive():
        return await table.admit(steering)


async def _project(projector: Projector, asked: Asked, request: dict[str, Any]) -> dict[str, Any]:
    with _alive():
        return await projector.project(asked, request)


@contextmanager
def _alive() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError:
        raise EngineError("the engine is dead", hint="start the server again") from None


def _refuse_untried_server() -> None:
    found = installed_version()
    if found != TESTED and not may_pass():
        raise UnsupportedError(
            f"vLLM's server was tried in version {TESTED}, and {found or 'none'} is installed",
            hint=f"install vLLM {TESTED}",
        )

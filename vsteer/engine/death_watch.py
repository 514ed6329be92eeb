"""The processes of a vLLM engine: how they ended, and an end to all waiting once one is dead."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import InvalidStateError
from typing import Any

from vsteer.errors import EngineError

# What is left of a call while vLLM shuts down because one of its workers died; its core ends a moment later.
CANCELLED = re.compile("Call to .* method failed: cancelled")


class DeathWatch:
    """Watches the processes behind vLLM's client until it is closed.

    The client itself would wait for ever for an engine that was killed, since that sends no last message.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fail_what_waits, name="vsteer-engine", daemon=True)
        self._thread.start()

    def processes(self) -> list[Any]:
        manager = getattr(getattr(self._client, "resources", None), "engine_manager", None)
        return list(getattr(manager, "processes", []))

    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes()]

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """An engine that dies while it is used is an `EngineError`, whatever it was used for."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except Exception as error:
            if not isinstance(error, EngineDeadError) and not CANCELLED.fullmatch(str(error)):
                raise
            raise EngineError(
                f"the engine died (exit codes {self.exit_codes()}): {error}",
                hint="its own message is above; if memory ran out, give a smaller max_num_seqs",
            ) from error

    def close(self) -> None:
        self._closed.set()

    def _fail_what_waits(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        while not self._closed.wait(1):
            if all(code is None for code in self.exit_codes()):
                continue
            for future in list(getattr(self._client, "utility_results", {}).values()):
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(EngineDeadError())
            # a step waits for its outputs elsewhere
            outputs = getattr(self._client, "outputs_queue", None)
            if outputs is not None and outputs.empty():
                outputs.put_nowait(EngineDeadError())

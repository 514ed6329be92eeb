"""A conversation in a model's own chat template, rendered in a process of its own, within limits.

The process is started once and renders thousands of questions a second. Tokenizers that don't render with
Jinja do it here.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from vsteer.errors import ModelError
from vsteer.prompts import chat_process
from vsteer.validation import shortened

Message = Mapping[str, str]

_MOST_TEMPLATE = 1_000_000
# where `template.dated` notes the day that a tokenizer's template writes
DAY = "vsteer_day"
_HUGGING_FACE = "transformers.tokenization_utils_base"


class Chat(NamedTuple):
    """A conversation as the model sees it, without and with the header of its answer."""

    turn: str
    header: str


def chat(tokenizer: Any, messages: Sequence[Message]) -> Chat:
    """`messages` in the tokenizer's chat template. A ModelError says why it makes nothing of them."""
    own = getattr(type(tokenizer), "apply_chat_template", None)
    if getattr(own, "__module__", None) != _HUGGING_FACE:
        return Chat(
            *(
                tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=header)
                for header in (False, True)
            )
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise _failed(str(error)) from None
    if not isinstance(template, str):
        raise _failed(f"it is no text, but {shortened(repr(template), 60)}")
    if len(template) > _MOST_TEMPLATE:
        raise _failed(f"it has {len(template):,} characters, and at most {_MOST_TEMPLATE:,} are read")
    day: date | None = getattr(tokenizer, DAY, None)
    request = {
        "template": template,
        "messages": [dict(message) for message in messages],
        "special_tokens": {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()},
        "day": day and day.isoformat(),
    }
    answer = _answered(json.dumps(request))
    if "refused" in answer:
        what = "a system prompt" if messages[0]["role"] == "system" else "this question"
        raise ModelError(
            f"the model's chat template refuses {what}: {shortened(answer['refused'], 200)}",
            "some models know no system prompt: leave it out",
        )
    if "failed" in answer:
        raise _failed(answer["failed"])
    return Chat(*answer["texts"])


def _plain(token: Any) -> Any:
    return [str(one) for one in token] if isinstance(token, list | tuple) else str(token)


def _failed(why: str) -> ModelError:
    return ModelError(
        f"the model's chat template can't be rendered: {shortened(why, 200)}",
        "is it the model's own? It stands in chat_template.jinja or tokenizer_config.json",
    )


# The answers to a question are rendered one after another, and the chat before them is the same.
@lru_cache(maxsize=32)
def _answered(request: str) -> dict[str, Any]:
    return PROCESS.ask(request)


class _Process:
    """The process that renders, started when it is first asked."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: str) -> dict[str, Any]:
        with self._lock:
            child = self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(request.encode() + b"\n")
                child.stdin.flush()
                line = child.stdout.readline()
                if line.endswith(b"\n"):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
            except BrokenPipeError:
                pass
            except BaseException:
                self.end()  # such as Ctrl-C: the answer to this request must not become that to the next
                raise
            ended = child.wait()
            self.end()
        if ended == -signal.SIGPROF:
            return {"failed": f"it takes longer than {chat_process.SECONDS:g} s"}
        return {"failed": f"it ended the process that renders it ({ended})"}

    def _started(self) -> subprocess.Popen[bytes]:
        """A process that was forked since has none of its own yet."""
        if self.child is None or self._owner != os.getpid():
            # -P: no module is taken from the script's folder
            command = [sys.executable, "-P", str(Path(chat_process.__file__))]
            self.child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._owner = os.getpid()
            assert self.child.stdout is not None
            if self.child.stdout.readline() != chat_process.READY:
                ended = self.child.wait()
                self.end()
                raise RuntimeError(f"the process that renders chat templates did not start ({ended})")
        return self.child

    def end(self) -> None:
        child, self.child = self.child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


PROCESS = _Process()
atexit.register(PROCESS.end)

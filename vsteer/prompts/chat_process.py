"""The process in which chat templates are rendered: a program that comes with a model may loop or eat memory.

A template is code of whoever made the model. No check finds each way to spend years in one filter, so the
process has a limit of memory and, for each rendering, of processor time, after which the system ends it. It
renders with transformers' own function, one request a line, and it ends with the process that asks.
This file is run as a script, and imports nothing of vsteer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

# Real templates take about a millisecond, and add some thousand characters to a question.
SECONDS = 2.0
MEBIBYTES = 512
MOST_ADDED, MOST_TIMES = 100_000, 4
READY = b"ready\n"


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends this process, whatever it is doing
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    sys.modules["torch"] = None  # type: ignore[assignment]  # nothing here needs it, and it takes seconds
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    out.write(READY)
    out.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        answer = json.dumps(_answer(render_jinja_template, json.loads(line))).encode() + b"\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(answer)
        out.flush()


def _answer(render: Callable[..., tuple[list[str], Any]], request: dict[str, Any]) -> dict[str, Any]:
    """The conversation without and with the header of an answer, or why the template makes none."""
    import jinja2

    variables: dict[str, Any] = request["special_tokens"]
    if request["day"] is not None:
        day = datetime.combine(date.fromisoformat(request["day"]), time())
        variables = variables | {"strftime_now": day.strftime}
    texts = []
    try:
        for header in (False, True):
            rendered, _ = render(
                conversations=[request["messages"]],
                chat_template=request["template"],
                add_generation_prompt=header,
                **variables,
            )
            texts += rendered
        "".join(texts).encode()
    except UnicodeEncodeError:
        return {"failed": "it makes half a surrogate pair, which is no text"}
    except MemoryError:
        return {"failed": f"it asks for more than {MEBIBYTES} MiB of memory"}
    except RecursionError:
        return {"failed": "it calls itself without end"}
    except Exception as error:
        # `raise_exception` raises this very class, and its subclasses are errors in the template.
        way = "refused" if type(error) is jinja2.TemplateError else "failed"
        return {way: str(error)[:1000] or type(error).__name__}
    given = sum(len(message["content"]) for message in request["messages"])
    if (longest := max(map(len, texts))) > MOST_ADDED + MOST_TIMES * given:
        return {"failed": f"it makes {longest:,} characters of {given:,}"}
    return {"texts": texts}


def _limit_memory() -> None:
    import resource  # not on Windows, where no model is run

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = held + MEBIBYTES * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()

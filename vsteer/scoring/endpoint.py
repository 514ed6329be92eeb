"""One question to an OpenAI-compatible endpoint, tried again while that may help.

The key comes from the environment (OPENAI_API_KEY) and goes nowhere but into the request's header: where a
server repeats it, in an error or an answer, it is struck out before anybody else sees the text.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from vsteer.errors import UsageError, VsteerError
from vsteer.scoring.judge_answers import Answer

KEY = "OPENAI_API_KEY"
# Nothing shorter is a secret, and striking it out would only spoil texts.
SHORTEST_KEY = 8
STRUCK = "[key]"
LONGEST_WAIT = 60.0
# What a chat template and the server's own words may add to a prompt.
TEMPLATE_TOKENS = 64


class JudgeError(VsteerError):
    """A judge that can't be asked at all: its key, address or model is wrong."""


class Unanswered(Exception):
    """No answer to this question, after all tries; the next scoring asks again."""


class Stopped(Exception):
    """The judging was stopped while this question waited for its next try."""


@dataclass(frozen=True)
class Paid:
    tokens: int
    known: bool  # the server reported it; otherwise it is the most that it can have been


@dataclass
class Endpoint:
    base_url: str
    model: str
    max_tokens: int
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        import openai

        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("--base-url is not an http or https address", "such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise UsageError("--base-url holds a password", f"put the key into the environment, as {KEY}")
        # For messages: never the whole address.
        self.place = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._key = os.environ.get(KEY, "")
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=self._key or "none", max_retries=0, timeout=self.timeout
        )

    def clean(self, text: str) -> str:
        """Without the key, and without halves of surrogate pairs, which no file can hold."""
        text = text.encode(errors="replace").decode()
        return text.replace(self._key, STRUCK) if len(self._key) >= SHORTEST_KEY else text

    def most_tokens(self, prompt: str) -> int:
        """What a question can cost at most: no tokenizer makes more tokens of a text than it has bytes."""
        return len(prompt.encode()) + TEMPLATE_TOKENS + self.max_tokens

    def ask(self, prompt: str, lost: Callable[[int], None]) -> tuple[Answer, Paid]:
        """The answer. `lost` gets what a try without an answer may have cost."""
        reply: tuple[Answer, Paid] | str = ""
        for number in range(self.tries):
            wait = min(LONGEST_WAIT, self.first_wait * 2**number) * random.uniform(0.5, 1)
            reply, wanted = self._try(prompt, lost)
            if isinstance(reply, tuple):
                return reply
            if number + 1 < self.tries and self.stop.wait(max(wait, wanted)):
                raise Stopped
        raise Unanswered(reply)

    def _try(self, prompt: str, lost: Callable[[int], None]) -> tuple[tuple[Answer, Paid] | str, float]:
        """An answer and its cost, or why there is none; and how long the server wants us to wait."""
        import openai

        if self.stop.is_set():
            raise Stopped
        try:
            reply = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=self.max_tokens,
                temperature=0,
            )
            return self._read(reply, prompt), 0.0
        except openai.APIStatusError as error:
            status = error.status_code
            if status in (401, 403, 404):
                raise self._refused(status) from None
            if status not in (408, 409, 429) and status < 500:
                raise Unanswered(f"{self.place} says {status}: {self._short(error)}") from None
            return f"{self.place} says {status}: {self._short(error)}", _retry_after(error.response)
        except openai.APIConnectionError as error:
            # The answer may have been computed and paid for, though it never came.
            lost(self.most_tokens(prompt))
            return f"{self.place}: {self._short(error)}", 0.0
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            lost(self.most_tokens(prompt))
            return f"{self.place}'s answer is no chat completion: {self._short(error)}", 0.0

    def _read(self, reply: Any, prompt: str) -> tuple[Answer, Paid]:
        choice = reply.choices[0]
        text, finish = choice.message.content, choice.finish_reason
        if not (text is None or isinstance(text, str)):
            raise ValueError("the answer's content is not a text")
        total = getattr(reply.usage, "total_tokens", None)
        known = isinstance(total, int) and total > 0
        paid = Paid(int(total or 0) if known else self.most_tokens(prompt), known)
        return Answer(None if text is None else self.clean(text), finish and self.clean(str(finish))), paid

    def _refused(self, status: int) -> JudgeError:
        if status == 404:
            return JudgeError(
                f"{self.place} has no such address or no model {self.model!r} (404)",
                hint="check --base-url, which mostly ends in /v1, and --judge-model",
            )
        return JudgeError(
            f"{self.place} refuses the key ({status})",
            hint=f"set {KEY} in the environment to a valid key",
        )

    def _short(self, error: Exception) -> str:
        return self.clean(" ".join(str(error).split()))[:200]


def _retry_after(response: Any) -> float:
    try:
        return min(LONGEST_WAIT, max(0.0, float(response.headers.get("retry-after", 0))))
    except (TypeError, ValueError):
        return 0.0

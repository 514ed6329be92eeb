"""One request to an OpenAI-compatible endpoint, and what it may have cost.

A request has one deadline as a whole, and its answer a limit in bytes. The key comes from the environment
(OPENAI_API_KEY) and goes nowhere but into the request's header: where a server repeats it, in an error or an
answer, it is struck out before anybody else sees the text.

What is billed, as far as can be known from here:
- A request that was never sent costs nothing: no connection, no name, no TLS.
- A status that is an error costs nothing. 504 is the exception, since behind that gateway a model may have
  answered.
- An answer costs what the server reports, or else the most that it can have cost.
- A request that was sent and came to nothing (no answer in time, half of one, one that is no chat completion)
  may have been billed, and counts as the most that it can have cost.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vsteer.errors import UsageError, VsteerError
from vsteer.scoring.judge_answers import Answer

if TYPE_CHECKING:
    import httpx

KEY = "OPENAI_API_KEY"
# Nothing shorter is a secret, and striking it out would only spoil texts.
SHORTEST_KEY = 8
STRUCK = "[key]"
LONGEST_WAIT = 60.0
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 0.1, 86_400.0
# A connection that isn't made by then is counted as a place that can't be reached.
CONNECT_SECONDS = 10.0
# A number and a reason take some hundred bytes; a model that thinks aloud takes some thousand.
MOST_BYTES = 1_000_000
# A count of tokens above this is no count.
MOST_REPORTED = 10**9
# What a chat template and the server's own words may add to a prompt.
TEMPLATE_TOKENS = 64


class JudgeError(VsteerError):
    """A judge that can't be asked at all: its key, address or model is wrong."""


@dataclass(frozen=True)
class Reply:
    """What one request came to: an answer, or the fault that it met."""

    answer: Answer | None = None
    tokens: int | None = None  # as the server reports them with the answer
    fault: str = ""
    sent: bool = True
    billed: bool = False  # it may have been, though no answer came
    again: bool = True  # another try may help
    wait: float = 0.0  # the seconds that the server asks for before it


class _NoCompletion(Exception):
    """The server answered, and not with a chat completion."""


class Endpoint:
    def __init__(self, base_url: str, model: str, max_tokens: int, timeout: float = 120.0) -> None:
        self.model, self.max_tokens, self.timeout = model, max_tokens, timeout
        if not SHORTEST_TIMEOUT <= timeout <= LONGEST_TIMEOUT:
            raise UsageError(
                f"--timeout can't be {timeout:g} seconds",
                f"give a number from {SHORTEST_TIMEOUT:g} to {LONGEST_TIMEOUT:g}",
            )
        if not model.strip() or not model.isprintable():
            raise UsageError("--judge-model is no name", "give the model's name as the endpoint lists it")
        self._url, self.place = _address(base_url)
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UsageError(f"{KEY} in the environment is no key", "a key is one line of ASCII characters")
        self._client = self._connections()
        # By how much the server's count was above ours: its template or its own instructions are longer.
        self._more = 0

    def _connections(self) -> httpx.AsyncClient:
        import httpx

        headers = {
            "authorization": f"Bearer {self._key or 'none'}",
            "content-type": "application/json",
            # As it is: a packed answer has no size that could be limited before it is unpacked.
            "accept-encoding": "identity",
        }
        try:
            return httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(None, connect=min(self.timeout, CONNECT_SECONDS)),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise UsageError(
                f"the environment's proxy or certificates can't be used: {str(error)[:100]}",
                hint="look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE",
            ) from None

    async def close(self) -> None:
        await self._client.aclose()

    def clean(self, text: str) -> str:
        """Without the key, and without halves of surrogate pairs, which no file can hold."""
        text = text.encode(errors="replace").decode()
        return text.replace(self._key, STRUCK) if len(self._key) >= SHORTEST_KEY else text

    def most_tokens(self, prompt: str) -> int:
        """What a request can cost at most: no tokenizer makes more tokens of a text than it has bytes."""
        return len(prompt.encode(errors="replace")) + TEMPLATE_TOKENS + self.max_tokens + self._more

    async def ask(self, prompt: str, on_send: Callable[[], None]) -> Reply:
        """One request. `on_send` is called before its first byte leaves: from then on it may be billed."""
        import httpx

        sent = False

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal sent
            # A proxy is asked for a connection first, by another method.
            if event == "http11.send_request_headers.started" and info["request"].method == b"POST":
                sent = True
                on_send()

        try:
            async with asyncio.timeout(self.timeout):
                status, headers, body = await self._post(prompt, trace)
        except TimeoutError:
            what = f"no whole answer within {self.timeout:g} seconds" if sent else "not reached in time"
            return Reply(fault=f"{self.place}: {what}", sent=sent, billed=sent)
        except (httpx.HTTPError, OSError) as error:
            fault = f"{self.place}: {self._short(str(error) or type(error).__name__)}"
            return Reply(fault=fault, sent=sent, billed=sent)
        except _NoCompletion as error:
            return self._no_completion(error)
        if not 200 <= status < 300:
            return self._refused(status, headers, body)
        try:
            reply = self._read(json.loads(body))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, _NoCompletion) as error:
            return self._no_completion(error)
        self._more += max(0, (reply.tokens or 0) - self.most_tokens(prompt))
        return reply

    async def _post(self, prompt: str, trace: Callable[..., Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the answer to a prompt."""
        question = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        # ASCII, so that a half of a surrogate pair in a text is no error of ours.
        content = json.dumps(question).encode()
        sending = self._client.stream("POST", self._url, content=content, extensions={"trace": trace})
        async with sending as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _NoCompletion("it is packed, and was asked for as it is")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise _NoCompletion(f"it has more than {MOST_BYTES:,} bytes")
            return response.status_code, response.headers, bytes(body)

    def _read(self, reply: Any) -> Reply:
        choice = reply["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
        if not (text is None or isinstance(text, str)):
            raise _NoCompletion("the answer's content is not a text")
        usage = reply.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        known = type(total) is int and 0 < total <= MOST_REPORTED
        answer = Answer(None if text is None else self.clean(text), finish and self.clean(str(finish)))
        return Reply(answer, total if known else None)

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """A status that is an error; where it says the same to every question, it is raised."""
        if status in (401, 403):
            raise JudgeError(
                f"{self.place} refuses the key ({status})",
                hint=f"set {KEY} in the environment to a valid key",
            )
        if status == 404:
            raise JudgeError(
                f"{self.place} has no such address or no model {self.model[:100]!r} (404)",
                hint="check --base-url, which mostly ends in /v1, and --judge-model",
            )
        if status < 400:
            raise JudgeError(
                f"{self.place} sends questions elsewhere ({status})",
                hint="give the address that it sends them to as --base-url",
            )
        fault = f"{self.place} says {status}: {self._short(body.decode(errors='replace'))}"
        return Reply(
            fault=fault,
            billed=status == 504,
            again=status in (408, 409, 425, 429) or status >= 500,
            wait=_retry_after(headers),
        )

    def _no_completion(self, error: Exception) -> Reply:
        return Reply(fault=f"{self.place}'s answer is no chat completion: {self._short(error)}", billed=True)

    def _short(self, words: object) -> str:
        plain = "".join(letter if letter.isprintable() else " " for letter in self.clean(str(words)))
        return " ".join(plain.split())[:200]


def http_address(given: str, option: str, example: str) -> httpx.URL:
    """What an option names, if it is the address of a server."""
    import httpx

    try:
        url = httpx.URL(given.strip())
        host = url.host  # it is decoded only now
    except (httpx.InvalidURL, ValueError):
        url, host = httpx.URL(""), ""
    in_range = url.port is None or 0 < url.port < 2**16
    if url.scheme not in ("http", "https") or not host or not in_range:
        raise UsageError(f"{option} is not an http or https address", f"such as {example}")
    return url


def _address(base_url: str) -> tuple[httpx.URL, str]:
    """Where questions go, and how messages call the place: they never show the whole address."""
    url = http_address(base_url, "--base-url", "http://127.0.0.1:8000/v1")
    if url.userinfo:
        raise UsageError("--base-url holds a password", f"put the key into the environment, as {KEY}")
    path = url.path.rstrip("/") + "/chat/completions"
    host = f"[{url.host}]" if ":" in url.host else url.host
    place = f"{url.scheme}://{host[:100]}" + (f":{url.port}" if url.port else "")
    return url.copy_with(path=path, fragment=None), place


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return min(LONGEST_WAIT, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:
        return 0.0

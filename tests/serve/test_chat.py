"""The chat in the terminal, against the server's own HTTP layer with vLLM played by a fake."""

from __future__ import annotations

import asyncio
import io

import httpx
import pytest
from rich.console import Console

from tests.serve.fake import FakeServer
from vsteer.errors import UsageError
from vsteer.serve.chat import Chat, first_dial, vectors_of
from vsteer.serve.dial import Dial


def chatted(server: FakeServer, *lines: str) -> tuple[str, Chat]:
    waiting = list(lines)

    async def read() -> str | None:
        return waiting.pop(0) if waiting else None

    async def talk() -> Chat:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            dial = first_dial(await vectors_of(client), "joy", None, "1")
            chat = Chat(client, dial, console, read, max_tokens=9)
            await chat.go_on()
            return chat

    console = Console(file=io.StringIO(), width=120)
    chat = asyncio.run(talk())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), chat


def asked(server: FakeServer) -> list[tuple[int, str]]:
    """How many messages each request had, and its last."""
    return [(len(body["messages"]), body["messages"][-1]["content"]) for body in server.vllm.seen]


def test_both_sides_answer_each_in_its_own_conversation() -> None:
    server = FakeServer()
    shown, chat = chatted(server, "Hello", "And now?", "/quit", "never")
    assert "base+joy@3:after_prompt" in shown
    assert "7 tokens steered" in shown
    assert "0 tokens steered" in shown
    assert asked(server) == [(1, "Hello"), (1, "Hello"), (3, "And now?"), (3, "And now?")]
    steered, unsteered = (side.messages[1]["content"] for side in (chat._steered, chat._unsteered))
    assert steered != unsteered
    assert steered in shown
    assert unsteered in shown
    # each goes on with its own answer
    assert sorted(body["messages"][1]["content"] for body in server.vllm.seen[2:]) == sorted(
        [steered, unsteered]
    )


def test_commands_turn_the_steering_and_new_begins_anew() -> None:
    server = FakeServer()
    lines = ("/layer 1..2", "/times -0.5", "/positions all", "Hello", "/off", "Hello", "/on", "/new", "Hello")
    shown, chat = chatted(server, *lines)
    assert chat.dial.name == "base+joy@1..2*-0.5"
    assert len(server.table.held) == 1
    assert asked(server) == [(1, "Hello"), (1, "Hello"), (3, "Hello"), (1, "Hello"), (1, "Hello")]
    assert "/positions after_prompt" in chatted(server, "/help")[0]
    assert shown.count("base+joy@1..2*-0.5") >= 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/layr 3", "did you mean '/layer'"),
        ("/times", "can't be read"),
        ("/times often", "can't be read"),
        ("/layer 5..2", "no layer lies in 5..2"),
        ("/positions everywhere", "no positions are called 'everywhere'"),
        ("/vector a b", "can't be read"),
    ],
)
def test_a_command_that_is_none_changes_nothing(line: str, says: str) -> None:
    server = FakeServer()
    shown, chat = chatted(server, line)
    assert says in " ".join(shown.split())
    assert chat.dial == Dial("joy", "3")
    assert server.vllm.seen == []


def test_each_token_is_coloured_by_what_the_stream_has_of_the_vector() -> None:
    server = FakeServer(projects=True)
    shown, chat = chatted(server, "/project 2", "Hello", "/off", "/project off")
    assert [name for name, _ in server.projected] == ["base+joy@3:after_prompt", "base"]
    for _, request in server.projected:
        assert (request["vector"], request["layer"]) == ("joy", 2)
        assert [message["role"] for message in request["messages"]] == ["user", "assistant"]
    for side in (chat._steered, chat._unsteered):
        text = side.coloured
        assert text is not None
        # 1 above the mean of 2 is full blue, 1 below it full orange, and what is written is harmless
        assert [(text.plain[span.start : span.end], span.style) for span in text.spans] == [
            ("good", "white on rgb(15,95,168)"),
            (" \\x1b[31m", "black on rgb(255,255,255)"),
            (" bad", "white on rgb(194,80,10)"),
        ]
    assert "\\x1b[31m bad" in shown
    words = " ".join(shown.split())
    # a note stands in two columns, so its words are looked for one by one
    for part in ("along joy", "mean 2", "0.816", "0.408"):
        assert part in words


def test_a_server_without_captures_says_so_under_the_answer() -> None:
    server = FakeServer()
    shown, _ = chatted(server, "/project 2", "Hello")
    assert "no projection" in shown
    assert "--projections" in shown
    assert "7 tokens steered" in shown
    shown, chat = chatted(server, "/project 77", "/project twenty")
    assert "joy has no layer 77" in shown
    assert "expected a layer, found 'twenty'" in shown
    assert chat.dial.project is None


def test_what_the_server_refuses_is_shown_and_asked_behind_no_open_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def of_another_server(client: httpx.AsyncClient) -> dict[str, list[int]]:
        return {"joy": [2, 3, 77]}

    monkeypatch.setattr("tests.serve.test_chat.vectors_of", of_another_server)
    server = FakeServer()
    shown, _ = chatted(server, "/layer 77", "Hello", "/layer 2", "Again")
    assert "has no layer 77" in " ".join(shown.split())
    # the unsteered side was answered, the steered one begins
    assert sorted(asked(server)) == [(1, "Again"), (1, "Hello"), (3, "Again")]


def test_the_terminal_obeys_nothing_that_a_model_says() -> None:
    server = FakeServer()
    server.vllm.words = [" \x1b[31mred", " [bold]", " \x07"]
    shown, _ = chatted(server, "Hello")
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]" in shown


def test_a_vector_that_the_server_lacks_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'joy'"):
        first_dial({"joy": [1, 2, 3]}, "jy", None, "1")
    with pytest.raises(UsageError, match="can't be read"):
        first_dial({"joy": [1, 2, 3]}, "joy", "x", "1")
    with pytest.raises(UsageError, match="joy has no layer 4") as raised:
        first_dial({"joy": [1, 2, 3]}, "joy", "3..5", "1")
    assert raised.value.hint == "it has 3, 1 to 3"
    dial = first_dial({"joy": [1, 2, 3]}, "joy", None, "1")
    with pytest.raises(UsageError, match="joy has no layer 0"):
        dial.turned("/layer 0")
    with pytest.raises(UsageError, match="no vector is called 'grief'"):
        dial.turned("/vector grief")
    assert dial.turned("/layer 1..2").name == "base+joy@1..2:after_prompt"


def test_no_server_is_one_message() -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(base_url="http://127.0.0.1:1") as client:
            await vectors_of(client)

    with pytest.raises(UsageError, match="no `vsteer serve` answers at"):
        asyncio.run(ask())

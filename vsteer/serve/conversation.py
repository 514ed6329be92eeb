"""What a request says to the model, as far as steering must know it: which of vLLM's settings it may use,
that it is text, and where a conversation's parts end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vsteer.errors import UsageError
from vsteer.prompts.template import render_chat
from vsteer.protocol import Prompt, Steering
from vsteer.validation import shown

# vLLM's settings that would make something else of a request than its steering can be told for, carry
# something past it, or bring a program along.
REFUSED = (
    "vllm_xargs",
    "use_beam_search",
    "kv_transfer_params",
    "ec_transfer_params",
    "prompt_embeds",
    "chat_template",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "truncate_prompt_tokens",
    "priority",
    "request_id",
    "session_id",
)
# Prompts times answers of one request.
MOST_ANSWERS = 256
# Their spans begin where parts of a conversation end.
_BY_PARTS = ("after_prompt", "after_user_turn")


def check_request(request: Mapping[str, Any]) -> None:
    """Raise for what the server does not take, steered or not."""
    for name in REFUSED:
        if request.get(name) not in (None, False):
            raise UsageError(f"the setting {name!r} can't be used here", "leave it out")
    prompts = request.get("prompt")
    count = len(prompts) if isinstance(prompts, list) and not all(type(one) is int for one in prompts) else 1
    answers = request.get("n")
    answers = 1 if answers is None else answers
    if type(answers) is not int or answers < 1 or count * answers > MOST_ANSWERS:
        raise UsageError(
            f"{count} prompts with {shown(answers)} answers each",
            f"one request has at most {MOST_ANSWERS} answers in all",
        )
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") != "text" or part.keys() - {"type", "text"}:
                raise UsageError("a message holds something else than text", "only text is taken")


def layout(tokenizer: Any, request: Mapping[str, Any], steering: Steering) -> Prompt | None:
    """Where a conversation's parts end, if the steering's span depends on that and the tokens don't tell.

    The tokens must then be those that vLLM makes of it, which is checked where both are known.
    """
    if "messages" not in request or steering.positions not in _BY_PARTS or not steering.acting_terms:
        return None
    others = request.get("chat_template_kwargs")
    settings = {**request, **(others if isinstance(others, dict) else {})}
    continued = settings.get("continue_final_message") is True
    header = settings.get("add_generation_prompt", True) is True
    if steering.positions == "after_prompt" and header and not continued:
        return None  # its last token is the prompt's last
    messages = request["messages"]
    if not _are_messages(messages):
        return None  # vLLM refuses it
    if header == continued:
        raise UsageError(
            f"the positions {steering.positions} can't be found where no answer is begun",
            "leave add_generation_prompt out",
        )
    return begun(tokenizer, messages) if continued else render_chat(tokenizer, _plain(messages))


def begun(tokenizer: Any, messages: Any) -> Prompt:
    """A conversation whose last message is the start of an answer."""
    if not _are_messages(messages):
        raise UsageError("expected a list of messages", "the last of them is the answer's beginning")
    *before, last = _plain(messages)
    if not before:
        raise UsageError("the conversation holds nothing but the start of an answer", "ask something first")
    return render_chat(tokenizer, before, last["content"])


def _are_messages(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(isinstance(m, dict) for m in messages)


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"role": str(one.get("role")), "content": _text(one.get("content"))} for one in messages]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text")) for part in content)
    return "" if content is None else str(content)

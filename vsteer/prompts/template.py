"""A question turned into a Prompt: its tokens, and where the user's turn and the header end.

Lengths come from the characters that each token covers, so a forced answer prefix that merges with
the header's last token belongs to the prefix, whatever the tokenizer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time
from functools import partial
from typing import Any

from vsteer.errors import ModelError
from vsteer.prompts.chat import DAY, Message, chat
from vsteer.protocol import Prompt


def render_chat(tokenizer: Any, messages: Sequence[Message], answer_prefix: str = "") -> Prompt:
    """`messages` in the model's own chat template, with the start of the answer forced."""
    if not is_chat(tokenizer):
        raise ModelError(
            "the model's tokenizer has no chat template",
            hint="it is a base model: give plain text prompts",
        )
    turn, header = chat(tokenizer, messages)
    if not header.startswith(turn):
        raise ModelError(
            "the chat template changes the user's turn when it adds its generation prompt",
            hint="after_user_turn is not known for such a template; give an explicit span",
        )
    return _encode(tokenizer, turn, header, answer_prefix, add_special_tokens=False)


def dated(tokenizer: Any, today: date) -> Any:
    """The tokenizer, whose chat template takes `today` for the date that it may write. By the clock, it would
    make other tokens of the same prompt after midnight."""
    if "strftime_now" in str(getattr(tokenizer, "chat_template", None)):
        now = datetime.combine(today, time())
        tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, strftime_now=now.strftime)
        setattr(tokenizer, DAY, today)
    return tokenizer


def is_chat(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def template_name(tokenizer: Any) -> str:
    return "chat" if is_chat(tokenizer) else "plain"


def render_plain(tokenizer: Any, question: str, system: str | None = None, answer_prefix: str = "") -> Prompt:
    """One question to a base model, which has no template: Input, Response."""
    turn = (f"{system}\n\n" if system else "") + f"Input: {question}"
    return _encode(tokenizer, turn, f"{turn}\nResponse:", answer_prefix, add_special_tokens=True)


def plain_text(tokenizer: Any, text: str) -> Prompt:
    """A text that nobody asks and nobody answers."""
    return _encode(tokenizer, text, text, "", add_special_tokens=True)


def with_gap(tokenizer: Any, question: str, answer: str, system: str | None = None) -> str:
    """The answer as it follows the prompt: behind a space, where the prompt ends in a word or a bracket.

    Llama 2's header ends in `[/INST]`, a base model's prompt in `Response:`, ChatML's in a line break.
    """
    if not is_chat(tokenizer):
        return f" {answer.lstrip()}"
    messages = [{"role": "system", "content": system}] if system else []
    header = chat(tokenizer, [*messages, {"role": "user", "content": question}]).header
    ends_clear = header[-1:].isspace() or any(
        header.endswith(token) for token in tokenizer.all_special_tokens
    )
    return answer.lstrip() if ends_clear else f" {answer.lstrip()}"


def render_question(
    tokenizer: Any, question: str, system: str | None = None, answer_prefix: str = ""
) -> Prompt:
    """One question: in the chat template where the model has one, plainly to a base model."""
    if not is_chat(tokenizer):
        return render_plain(tokenizer, question, system, answer_prefix)
    messages = [{"role": "system", "content": system}] if system else []
    return render_chat(tokenizer, [*messages, {"role": "user", "content": question}], answer_prefix)


def _encode(
    tokenizer: Any, turn: str, header: str, answer_prefix: str, *, add_special_tokens: bool
) -> Prompt:
    """`turn` is the start of `header`; a token that reaches into the prefix belongs to the prefix."""
    encoded = tokenizer(
        header + answer_prefix, add_special_tokens=add_special_tokens, return_offsets_mapping=True
    )
    ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    # Some tokenizers end every text by themselves, and an ended text has no answer. What they add covers no
    # characters; at the front it stays.
    while len(ids) > 1 and ends[-1] == 0:
        ids.pop()
        ends.pop()
    return Prompt(
        tuple(ids),
        template_length=sum(end <= len(header) for end in ends),
        user_turn_length=sum(end <= len(turn) for end in ends),
    )

"""A chat turned into a Prompt: its tokens, and where the user's turn and the header end.

Lengths come from the characters that each token covers, so a forced answer prefix that merges with
the header's last token belongs to the prefix, whatever the tokenizer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vsteer.engine.request import Prompt
from vsteer.errors import ModelError

Message = Mapping[str, str]


def render_text(tokenizer: Any, text: str) -> Prompt:
    """A plain text prompt, as a base model takes it."""
    return Prompt.plain(tokenizer(text)["input_ids"])


def render_chat(tokenizer: Any, messages: Sequence[Message], answer_prefix: str = "") -> Prompt:
    """`messages` in the model's own chat template, with the start of the answer forced."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the model's tokenizer has no chat template",
            hint="it is a base model: give plain text prompts",
        )
    turn = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
    header = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    if not header.startswith(turn):
        raise ModelError(
            "the chat template changes the user's turn when it adds its generation prompt",
            hint="after_user_turn cannot be told for such a template; give an explicit span",
        )
    encoded = tokenizer(header + answer_prefix, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    return Prompt(
        tuple(encoded["input_ids"]),
        template_length=sum(end <= len(header) for end in ends),
        user_turn_length=sum(end <= len(turn) for end in ends),
    )


def ask(tokenizer: Any, question: str, system: str | None = None, answer_prefix: str = "") -> Prompt:
    """One question to a chat model."""
    messages = [{"role": "system", "content": system}] if system else []
    return render_chat(tokenizer, [*messages, {"role": "user", "content": question}], answer_prefix)

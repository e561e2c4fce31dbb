"""A checkpoint's own chat template, cut where the video and the question go.

It knows nothing of tokens or families: a turn is three texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SENTINEL = "thequestiongoeshere"  # no template has it, and trimming leaves it as it is


@dataclass(frozen=True)
class Turn:
    """A user's turn about a video, as text.

    Attributes:
        before_video: all that is before the video: system prompt, start of the turn.
        before_question: what is between video and question.
        after_question: the end of the turn, and the start of the answer.
    """

    before_video: str
    before_question: str
    after_question: str


@dataclass(frozen=True)
class Between:
    """What stands between turns, as text.

    Attributes:
        before_answer: between a question and its answer.
        before_next: between an answer and the next question.
    """

    before_answer: str
    before_next: str


def render_turn(
    tokenizer: Any, template: str | None, shown: str = "video", *, system: str | None = None, again: bool = False
) -> str:
    """One turn with something shown and a question, up to where the answer starts, as the model reads it.

    Args:
        tokenizer: of transformers, which renders.
        template: the processor's, or None for the tokenizer's own.
        shown: "video" or "image".
        system: the system prompt, None for the template's own.
        again: whether the question has got an answer, and another one is asked.
    """
    text = {"type": "text", "text": SENTINEL}
    messages = [{"role": "user", "content": [{"type": shown}, text]}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    if again:
        messages += [{"role": role, "content": [text]} for role in ("assistant", "user")]
    rendered: str = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return rendered if again else _begun(tokenizer, rendered)


def _begun(tokenizer: Any, rendered: str) -> str:
    """Behind the token with which the tokenizer begins every text, unless the template has it already."""
    begins = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer.bos_token + rendered if begins and not rendered.startswith(tokenizer.bos_token) else rendered


def cut_turn(rendered: str, placeholder: str) -> Turn:
    """Cuts a rendered turn at what stands for the video, and at the question.

    Raises:
        ValueError: if there is not one video before one question.
    """
    before_video, video, rest = rendered.partition(placeholder)
    before_question, question, after_question = rest.partition(SENTINEL)
    if not video or not question or placeholder in rest or SENTINEL in after_question:
        raise ValueError(
            f"the chat template must place one {placeholder!r} before the question, but it gives {rendered!r:.200}; "
            "use the template of a model for video"
        )
    return Turn(before_video, before_question, after_question)


def cut_between(rendered: str, turn: Turn, name: str) -> Between:
    """Cuts what stands between turns out of a dialogue of two questions.

    Raises:
        ValueError: if the template of this model has no earlier turns, or changes them.
    """
    texts = rendered.split(SENTINEL)
    if len(texts) != 4 or texts[3] != turn.after_question:
        raise ValueError(f"the chat template of {name!r} has no earlier turns; leave dialogue off")
    return Between(texts[1], texts[2])

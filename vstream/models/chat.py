"""A checkpoint's own chat template, cut where the video and the question go.

It knows nothing of tokens or families: a turn is three texts.
"""

from __future__ import annotations

from collections.abc import Callable
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


def cut_template(render: Callable[[list[dict[str, Any]]], str], placeholder: str) -> Turn:
    """Renders one turn with a video and a question, and cuts it at both.

    Args:
        render: a conversation as the text that the model reads, up to where its answer starts.
        placeholder: what stands for the video in that text.

    Raises:
        ValueError: if the template does not place one video before one question.
    """
    content = [{"type": "video"}, {"type": "text", "text": SENTINEL}]
    rendered = render([{"role": "user", "content": content}])
    before_video, video, rest = rendered.partition(placeholder)
    before_question, question, after_question = rest.partition(SENTINEL)
    if not video or not question or placeholder in rest or SENTINEL in after_question:
        raise ValueError(
            f"the chat template must place one {placeholder!r} before the question, but it gives {rendered!r:.200}; "
            "use the template of a model for video"
        )
    return Turn(before_video, before_question, after_question)

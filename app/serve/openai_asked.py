"""From the messages of OpenAI's clients to a question: its text, its pictures, and what is left out.

This module knows nothing of streams or models.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vstream.app.serve.errors import ApiError
from vstream.app.serve.openai_records import Message, Part

MAX_PICTURES = 16
TEXT = ("text", "input_text", "output_text")
PICTURE = ("image_url", "input_image")
INSTEAD = {
    "video_url": "open the video as a stream (POST /v1/streams) and ask that",
    "input_video": "open the video as a stream (POST /v1/streams) and ask that",
    "input_file": "send the video by POST /v1/uploads, open it by POST /v1/streams, and ask that",
    "file": "send the video by POST /v1/uploads, open it by POST /v1/streams, and ask that",
    "input_audio": "sound is not heard",
}


@dataclass(frozen=True)
class Asked:
    """A question as messages ask it.

    Attributes:
        text: the last message's words.
        pictures: files as they were sent, of all messages of the user, oldest first.
        ignored: messages before the last one.
    """

    text: str
    pictures: tuple[bytes, ...] = ()
    ignored: int = 0


def asked(messages: Sequence[Message]) -> Asked:
    """What messages ask. Raises `ApiError` 400 for what cannot be read, or would be left out unnoticed."""
    for number, message in enumerate(messages):
        _check_role(message, f"messages.{number}")
    last = messages[-1]
    if last.role != "user":
        raise ApiError(400, "the last message must be the user's: it is the question", param="messages")
    users = [message for message in messages if message.role == "user"]
    pictures = [_picture(part) for message in users for part in _parts(message) if part.type in PICTURE]
    if len(pictures) > MAX_PICTURES:
        raise ApiError(400, f"at most {MAX_PICTURES} pictures can be asked about at once, got {len(pictures)}")
    return Asked(_text(last), tuple(pictures), len(messages) - 1)


def check_no_instructions(text: str | None, param: str) -> None:
    """Raises `ApiError` 400 for a system prompt: a stream's own stands at its very beginning."""
    if text and text.strip():
        message = "a system prompt cannot be given with a question; it is part of how the server was started"
        raise ApiError(400, message, code="unsupported_parameter", param=param)


def _check_role(message: Message, param: str) -> None:
    if message.role in ("system", "developer"):
        check_no_instructions(_text(message), param)
    if message.role in ("tool", "function"):
        raise ApiError(400, "there are no tools here; leave out their messages", param=param)
    for part in _parts(message):
        if part.type not in TEXT + PICTURE:
            instead = INSTEAD.get(part.type, f"allowed are {', '.join(TEXT[:2] + PICTURE)}")
            raise ApiError(400, f"a part of type {part.type[:40]!r} cannot be read: {instead}", param=param)


def _parts(message: Message) -> Sequence[Part]:
    return message.content if isinstance(message.content, list) else ()


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = [(part.model_extra or {}).get("text") for part in _parts(message) if part.type in TEXT]
    if not all(isinstance(text, str) for text in texts):
        raise ApiError(400, 'a part of text has the form {"type": "text", "text": "..."}', param="messages")
    return "\n".join(str(text) for text in texts)


def _picture(part: Part) -> bytes:
    """The file in a part. Raises `ApiError` 400; nothing is ever fetched."""
    given = (part.model_extra or {}).get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        raise ApiError(400, "a picture is a data: URL (image_url)", param="image_url")
    found = re.match(r"data:image/[a-z+.-]+;base64,", url, re.IGNORECASE)
    if found is None:
        message = f"a picture must be sent as a data: URL, since nothing is fetched from elsewhere, got {url[:40]!r}"
        raise ApiError(400, message, param="image_url")
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except ValueError:
        raise ApiError(400, "the picture's data: URL is not base64", param="image_url") from None

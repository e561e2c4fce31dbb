"""What OpenAI's clients send to the compatible routes, and what they get.

Fields that change nothing here are taken and left alone; fields that would change the answer, and cannot, are refused
unless they ask for what happens anyway. This module knows nothing of streams or of how answers are made.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vstream.app.serve.errors import ApiError
from vstream.app.serve.records import EvidenceRecord, Moment, Seconds, Told, Usage, checked_at
from vstream.app.serve.stream import MAX_TEXT

LEFT_ALONE = frozenset({
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "service_tier", "parallel_tool_calls", "max_tool_calls", "truncation",
})  # fmt: skip
"""Fields that say nothing about the answer."""

NOTHING: tuple[Any, ...] = (None, [], {}, False)
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "tools": NOTHING,
    "functions": NOTHING,
    "function_call": (None, "none", "auto"),
    "tool_choice": (None, "none", "auto"),
    "logprobs": NOTHING,
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "text": (None, {}, {"format": {"type": "text"}}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": NOTHING,
    "modalities": (None, ["text"]),
    "audio": NOTHING,
    "prediction": NOTHING,
    "reasoning": NOTHING,
    "reasoning_effort": (None, "none"),
    "web_search_options": (None,),
    "include": NOTHING,
    "store": NOTHING,
    "background": NOTHING,
    "conversation": NOTHING,
    "prompt": NOTHING,
    "previous_response_id": NOTHING,
}
"""Fields that cannot be served, and the values that need not be."""

INSTEAD = {
    "n": "ask n times",
    "previous_response_id": 'a stream opened with {"dialogue": true} hears its earlier turns',
    "conversation": 'a stream opened with {"dialogue": true} hears its earlier turns',
    "store": "GET /v1/streams/ID/turns has the conversation",
}


class Part(BaseModel):
    """One part of a message's content; what it may be is decided when it is read."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str = Field(max_length=100)


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: Annotated[str, Field(max_length=MAX_TEXT)] | Annotated[list[Part], Field(max_length=100)] | None = None


class Wanted(BaseModel):
    """What both kinds of requests share.

    Attributes:
        model: `stream:ID`, or a model's name: for a stream that `stream_id` names, or for pictures in the messages.
        stream_id: the stream that is asked; an extra field of ours, as `at` and `choices` are.
        at: the stream time at which the question is asked.
        choices: options to choose from.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200, examples=["stream:0123456789ab"])
    stream_id: str | None = Field(None, max_length=64)
    at: Annotated[Seconds | Moment | None, checked_at] = None
    choices: list[Annotated[str, Field(max_length=1000)]] = Field(default_factory=list, max_length=26)
    temperature: float | None = Field(None, ge=0, le=1e6)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None

    def check_extras(self) -> None:
        """Raises `ApiError` 400 for fields that are unknown, or ask for what cannot be had."""
        for name, value in (self.model_extra or {}).items():
            if name in LEFT_ALONE:
                continue
            if name not in ONLY:
                raise ApiError(400, f"{name} is not known here; leave it out", code="unknown_parameter", param=name)
            if value not in ONLY[name]:
                instead = f": {INSTEAD[name]}" if name in INSTEAD else ""
                message = f"{name} cannot be served; leave it out{instead}"
                raise ApiError(400, message, code="unsupported_parameter", param=name)


class StreamOptions(BaseModel):
    """How a streamed response ends."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class ChatRequest(Wanted):
    """A request to /v1/chat/completions.

    The last message, which is the user's, is the question. What was said before it is left out, unless the stream was
    opened with {"dialogue": true}: then the stream's own record of the conversation is heard.
    """

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1, le=1 << 30)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 30)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream_options: StreamOptions | None = None


class ResponsesRequest(Wanted):
    """A request to /v1/responses; `input` is the question, or messages of which the last one is."""

    input: Annotated[str, Field(max_length=MAX_TEXT)] | Annotated[list[Message], Field(min_length=1, max_length=1000)]
    instructions: str | None = Field(None, max_length=MAX_TEXT)
    max_output_tokens: int | None = Field(None, ge=1, le=1 << 30)
    stream_options: StreamOptions | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What comes back as it was sent. Raises `ApiError` 400 for what JSON cannot say."""
        given = (self.model_extra or {}).get("metadata")
        try:
            json.dumps(given, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            message = "metadata holds what JSON cannot say (NaN, half of a character, too many levels); leave it out"
            raise ApiError(400, message, param="metadata") from None
        return given if isinstance(given, dict) else {}


# What they get


class Model(Told):
    """A model, or a stream to be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vstream"


class ModelList(Told):
    """The models, the default first, then every open stream as `stream:ID`."""

    object: Literal["list"] = "list"
    data: list[Model]


class About(Told):
    """What is ours about an answer.

    Attributes:
        stream_id: None where only the message's own pictures were watched.
        number: of the turn.
        ignored_messages: how many messages before the question were left out.
        earlier: how many earlier turns of the stream the answer heard; None without a dialogue.
    """

    stream_id: str | None
    number: int
    asked_at_seconds: float | None
    snapshot_seconds: float | None
    ignored_messages: int
    earlier: int | None


class ChatMessage(Told):
    """The answer as a message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Told):
    """The only choice there is."""

    index: Literal[0] = 0
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(Told):
    """A response of /v1/chat/completions; `evidence` and `vstream` are extra."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    evidence: list[EvidenceRecord]
    vstream: About


class ResponseText(Told):
    """The answer's text."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    logprobs: list[Any] = Field(default_factory=list, max_length=0)


class ResponseMessage(Told):
    """The answer as an item of a response."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[ResponseText]


class CachedTokens(Told):
    """Of a prompt's tokens, those that were not computed for this question; they are not told apart."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class ReasoningTokens(Told):
    """There are none."""

    reasoning_tokens: int = 0


class ResponseUsage(Told):
    """Tokens, under the names of this kind of response."""

    input_tokens: int
    input_tokens_details: CachedTokens = CachedTokens()
    output_tokens: int
    output_tokens_details: ReasoningTokens = ReasoningTokens()
    total_tokens: int


class Incomplete(Told):
    """Why an answer ends early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseProblem(Told):
    """Why a response failed."""

    code: Literal["server_error"] = "server_error"
    message: str


class ResponseRecord(Told):
    """A response of /v1/responses; `evidence` and `vstream` are extra."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseProblem | None = None
    incomplete_details: Incomplete | None = None
    instructions: None = None
    max_output_tokens: int | None
    model: str
    output: list[ResponseMessage]
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    temperature: float | None
    text: dict[str, Any] = Field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = Field(default_factory=list, max_length=0)
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    evidence: list[EvidenceRecord] = Field(default_factory=list)
    vstream: About | None = None

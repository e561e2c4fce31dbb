"""What goes in and out of the API as JSON: one model for every request and every response.

Times are seconds on a stream's own clock; "at" fields that end in `_at` are Unix times. No number is ever NaN or
infinite. This module knows nothing of HTTP, hubs or sessions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vstream.app.alerts.standing import MAX_TEXT as MAX_ALERT_TEXT
from vstream.app.serve.stream import MAX_TEXT
from vstream.types import parse_seconds

Level = Literal["detail", "digest", "gist", "window", "open", ""]
TurnState = Literal["waiting", "answering", "done", "failed"]


class Given(BaseModel):
    """What a client sends: nothing unknown, nothing turned into something else, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Told(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(allow_inf_nan=False)


class Problem(Told):
    """What was wrong, in one sentence.

    Attributes:
        message: for people.
        type: the kind, as OpenAI's clients know it.
        code: for programs, None where the kind says all.
        param: the field that it is about, None where it is about none.
    """

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class Refusal(Told):
    """The body of every response that is an error."""

    error: Problem


# Streams


class NewStream(Given):
    """What is to be watched, and how.

    Attributes:
        source: a file or folder that is allowed, "sample", a camera, an upload, or "push" for frames sent.
        title: for people; the source's name unless given.
        model, preset, fps: of those that the server offers; its own unless given.
        keep: whether the memory stays when the stream is closed.
        realtime: a recorded file is watched at its own pace.
        dialogue: questions see earlier ones and their answers.
    """

    source: str = Field(min_length=1, max_length=4096, examples=["sample", "push"])
    title: str | None = Field(None, max_length=1000)
    model: str | None = Field(None, max_length=200)
    preset: str | None = Field(None, max_length=200)
    keep: bool = False
    realtime: bool = False
    fps: float | None = Field(None, gt=0, le=1000)
    dialogue: bool = False


class Change(Given):
    """What is to be different; what is left out stays.

    Attributes:
        title: for people.
        kept: whether the memory stays when the stream is closed.
    """

    title: str | None = Field(None, max_length=1000)
    kept: bool | None = None


class Rates(Told):
    """Frames: per second over the last ten, and those that were dropped because there was no room for them."""

    decoded_per_second: float
    encoded_per_second: float
    dropped: int


class StreamRecord(Told):
    """A stream that is open.

    Attributes:
        id: its own, and its memory's.
        state: "connecting", "watching", "reconnecting", "over", "memory" (it is asked alone), "failed" or "closed".
        note: how it was opened, where there is something to say.
        trouble: what its source is busy with unless it is simply watched, and why it failed if it did.
        source: what is watched, without any password.
        is_live: whether it has no end of its own.
        has_file: whether it is a recording of which any frame can be had.
        clock_seconds: time of the newest frame, None before the first.
        duration_seconds: of the source, None where unknown.
        wall_seconds: Unix time of the newest frame, None where unknown.
        lag_seconds: how far the newest frame that is remembered is behind the newest decoded.
        blocks: how many the memory has, by level.
        bytes: what it takes, by tier.
        gaps: times at which a camera was not seen.
        questions: how many turns the conversation has.
        created: ISO 8601, UTC.
    """

    object: Literal["stream"] = "stream"
    id: str
    title: str
    state: Literal["connecting", "watching", "reconnecting", "over", "memory", "failed", "closed"]
    note: str
    trouble: str
    source: str
    model: str
    preset: str | None
    fps: float | None
    realtime: bool
    dialogue: bool
    kept: bool
    is_live: bool
    has_file: bool
    clock_seconds: float | None
    duration_seconds: float | None
    wall_seconds: float | None
    lag_seconds: float
    frames: Rates
    blocks: dict[str, int]
    bytes: dict[str, int]
    gaps: int
    questions: int
    created: str


class StreamList(Told):
    """All streams that are open, in the order they were opened."""

    object: Literal["list"] = "list"
    data: list[StreamRecord]


class Gone(Told):
    """What is no more."""

    id: str
    deleted: Literal[True] = True


# Questions


def _checked_at(at: float | str | None) -> float | str | None:
    """A time as sessions know it: seconds, "now" or "end". Raises `ValueError`."""
    return at if at in ("now", "end", None) else parse_seconds(str(at))


checked_at = AfterValidator(_checked_at)
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Moment = Annotated[str, Field(pattern=r"^(now|end|[0-9]+(:[0-9]{1,2}){0,2}(\.[0-9]+)?)$", max_length=20)]


class Question(Given):
    """A question about a stream.

    Attributes:
        question: plain text.
        at: the stream time at which it is asked, and beyond which nothing is seen: seconds, "MM:SS", "now" or "end".
            Unless given: "now" of a live stream, else "end".
        choices: 2 to 26 options to choose from, or none.
        max_tokens: how long the answer may be.
        temperature: 0 always takes the likeliest token.
        top_p: the likeliest tokens that make up this probability are chosen from.
        seed: the same seed gives the same answer.
        stop: the answer ends before any of these.
        stream: the answer comes as server-sent events.
    """

    question: str = Field(min_length=1, max_length=MAX_TEXT, examples=["What happens now?"])
    at: Annotated[Seconds | Moment | None, checked_at] = Field(None, examples=["now", "01:15", 75.0])
    choices: list[Annotated[str, Field(max_length=1000)]] = Field(default_factory=list, max_length=26)
    max_tokens: int | None = Field(None, ge=1, le=1 << 20)
    temperature: float | None = Field(None, ge=0, le=1e6)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(None, max_length=200)
    stream: bool = False


class EvidenceRecord(Told):
    """A stretch of the stream that the answer saw.

    Attributes:
        start_seconds, end_seconds: its first and last frame.
        level: how it was remembered: "detail", "digest", "gist", "window" (recent), "open" (not encoded yet); "" where
            nobody knows any more.
        score: how well it fits the question; None where nobody knows any more.
        wall_seconds: Unix time of its start, None where unknown.
        picture_seconds: time of its picture, None where there is none.
        picture_url: where that picture is, on this server.
    """

    start_seconds: float
    end_seconds: float
    level: Level
    score: float | None
    wall_seconds: float | None
    picture_seconds: float | None
    picture_url: str | None


class Usage(Told):
    """Tokens: those that the first one of the answer was made from, memory and window included, and the answer's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TurnRecord(Told):
    """A question and its answer.

    Attributes:
        number: from 1 in each conversation.
        state: "waiting" for its stream time or for room, "answering", "done" or "failed".
        answer: what was said so far.
        finish_reason: "stop", "length", "cancelled", "nothing-seen"; None while it goes on.
        choice: which option it names, from 0.
        asked_at_seconds: stream time of the question, None while unknown (the end).
        snapshot_seconds: time of the newest frame that it saw.
        earlier: how many earlier turns it heard; None without a dialogue.
        ttft_seconds: from the moment it was due to its first token.
        asked_at: Unix time; None for turns of an earlier run.
        error: why it failed.
    """

    object: Literal["turn"] = "turn"
    stream_id: str
    number: int
    question: str
    choices: list[str]
    state: TurnState
    answer: str
    finish_reason: Literal["stop", "length", "cancelled", "nothing-seen"] | None
    choice: int | None
    evidence: list[EvidenceRecord]
    usage: Usage
    asked_at_seconds: float | None
    snapshot_seconds: float | None
    earlier: int | None
    ttft_seconds: float | None
    tokens_per_second: float | None
    asked_at: float | None
    error: str | None


class TurnList(Told):
    """The latest of a conversation, oldest first."""

    object: Literal["list"] = "list"
    data: list[TurnRecord]


# Standing questions


class NewAlert(Given):
    """Something that is to be told of whenever it is to be seen.

    Attributes:
        text: a condition, or a question of yes or no.
        on: an event begins above this score: log-odds of yes, less what is usual for the question.
        off: it ends below this one, which is lower; as far below `on` as usual, unless given.
        cool_down_seconds: after an event none begins for so long.
    """

    text: str = Field(min_length=1, max_length=MAX_ALERT_TEXT, examples=["a cat appears", "is the door open?"])
    on: float | None = Field(None, ge=-100, le=100)
    off: float | None = Field(None, ge=-200, le=100)
    cool_down_seconds: float | None = Field(None, ge=0, le=1e6)


class AlertRecord(Told):
    """A standing question as it stands.

    Attributes:
        since_seconds: stream time since which it is so, None while it is not.
        confidence: that it is so in the clip looked at last, 0 to 1; None before the first.
        events: how many there were lately.
        looked: clips on which it was looked at.
        skipped: clips on which there was no time to.
    """

    object: Literal["alert"] = "alert"
    id: str
    stream_id: str
    text: str
    on: float
    off: float
    cool_down_seconds: float
    since_seconds: float | None
    confidence: float | None
    events: int
    looked: int
    skipped: int


class AlertList(Told):
    """What is looked for, oldest first."""

    object: Literal["list"] = "list"
    data: list[AlertRecord]


class EventRecord(Told):
    """Something that was looked for has begun, or is over.

    Attributes:
        id: the same at its beginning and its end, and of no other event.
        end_seconds: None while it goes on.
        seconds: of the frame that shows it.
        confidence: 0 to 1.
        wall_seconds: Unix time of its start, None where unknown.
        picture_url: where its picture is, on this server.
    """

    object: Literal["event"] = "event"
    id: str
    alert_id: str
    stream_id: str
    text: str
    start_seconds: float
    end_seconds: float | None
    seconds: float
    confidence: float
    wall_seconds: float | None
    picture_url: str | None


class EventList(Told):
    """The latest events, in the order of their beginnings."""

    object: Literal["list"] = "list"
    data: list[EventRecord]


# Memory


class BlockRecord(Told):
    """A block of the memory."""

    level: Level
    start_seconds: float
    end_seconds: float
    tokens: int


class BinRecord(Told):
    """A stretch of stream time, and how many tokens of it are remembered by level."""

    start_seconds: float
    end_seconds: float
    tokens: dict[str, int]


class LevelRecord(Told):
    """How much of a memory is on one level."""

    blocks: int
    tokens: int


class GapRecord(Told):
    """A stretch of stream time that was not seen, and why."""

    start_seconds: float
    end_seconds: float
    reason: str


class UsedRecord(Told):
    """What the latest answer saw of the memory.

    Attributes:
        number: of its turn.
        recalled: (start, end) seconds of every block that was brought back.
    """

    number: int
    evidence: list[EvidenceRecord]
    recalled: list[tuple[float, float]]


class MemoryRecord(Told):
    """What a stream remembers.

    Attributes:
        levels: by name.
        bytes: by tier.
        bins: the whole stream's time, cut into equal parts.
        blocks: one by one, in time order, as many as were asked for.
        next_offset: where those that were left out begin, None where there are none.
        gaps: the newest that were not seen; `num_gaps` is how many there were.
        used: what the latest answer saw, None before the first.
    """

    stream_id: str
    clock_seconds: float | None
    levels: dict[str, LevelRecord]
    bytes: dict[str, int]
    bins: list[BinRecord]
    blocks: list[BlockRecord]
    next_offset: int | None
    gaps: list[GapRecord]
    num_gaps: int
    used: UsedRecord | None


class KeptRecord(Told):
    """A memory on disk.

    Attributes:
        is_open: whether a stream of the same id is open.
        seconds: time of the newest frame it holds.
        bytes: what it takes on disk.
        questions: how many turns it remembers.
    """

    object: Literal["memory"] = "memory"
    id: str
    title: str
    source: str
    model: str
    preset: str | None
    kept: bool
    is_open: bool
    seconds: float | None
    bytes: int
    questions: int
    created: str


class KeptList(Told):
    """Memories on disk, newest first."""

    object: Literal["list"] = "list"
    data: list[KeptRecord]


class Resume(Given):
    """How a memory is opened again.

    Attributes:
        source: what it is of, where the server does not know (an address with a password); "" to ask it alone.
    """

    source: str | None = Field(None, max_length=4096)


# Frames and files that are sent


class Pushed(Told):
    """What became of the frames that were sent.

    Attributes:
        received: how many came, this one included; on a WebSocket, of this connection.
        dropped: how many of the stream's left a queue unread, because the model was slower.
    """

    received: int
    dropped: int


class UploadRecord(Told):
    """A video that was sent; `source` is what to give to open it."""

    name: str
    source: str
    bytes: int


class Health(Told):
    """How the server is."""

    status: Literal["ok", "loading", "stopping"]


ANY_JSON: dict[str, Any] = {"type": "object", "additionalProperties": True}
"""The schema of a JSON object of which the server does not say more."""

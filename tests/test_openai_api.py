"""The OpenAI-compatible routes, as the official client uses them, against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image
from serving import LONG, Served, make_hub, serve, slow_down, wait_for, write_video

pytestmark = pytest.mark.slow

QUESTION = "what is there now?"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(make_hub(tmp_path_factory.mktemp("openai"))) as served:
        yield served


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture
def stream_id(served: Served, video: Path):
    yield served.open(video)
    served.close_all()


@pytest.fixture(scope="module")
def client(served: Served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def said(served: Served, stream_id: str) -> str:
    """What the stream says to the question, asked directly."""
    return served.hub.stream(stream_id).ask(QUESTION).answer.text(60)


def messages(text: object = QUESTION) -> list[dict]:
    return [{"role": "user", "content": text}]


def data_url(shade: tuple[int, int, int], kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), shade).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


# Models


def test_models_are_those_that_may_be_chosen_and_every_open_stream(
    served: Served, client: openai.OpenAI, stream_id: str
) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", f"stream:{stream_id}"]
    assert client.models.retrieve(f"stream:{stream_id}").created > 1_700_000_000
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-x'"):
        client.models.retrieve("gpt-x")


# Chat completions


@pytest.mark.parametrize("way", ["model", "extra"])
def test_a_chat_completion_with_evidence_and_usage(
    served: Served, client: openai.OpenAI, stream_id: str, way: str
) -> None:
    named = {"model": f"stream:{stream_id}"} if way == "model" else {"model": "tiny"}
    extra = {} if way == "model" else {"stream_id": stream_id}
    completion = client.chat.completions.create(**named, messages=messages(), extra_body=extra)
    [choice] = completion.choices
    assert choice.message.content == said(served, stream_id)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert completion.model == named["model"]
    assert completion.id.startswith("chatcmpl-")
    answer = served.hub.stream(stream_id).turns[0].answer
    assert completion.usage.prompt_tokens == answer.num_prompt_tokens > 72
    assert completion.usage.completion_tokens == answer.num_tokens
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    evidence = completion.model_extra["evidence"]
    assert served.http.get(evidence[0]["picture_url"]).headers["content-type"] == "image/jpeg"
    assert completion.model_extra["vstream"]["stream_id"] == stream_id


def test_a_streamed_chat_completion_has_chunks_as_openai_sends_them(
    served: Served, client: openai.OpenAI, stream_id: str
) -> None:
    chunks = list(
        client.chat.completions.create(
            model=f"stream:{stream_id}", messages=messages(), stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra["evidence"][0]["level"] == "window"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == said(served, stream_id)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == served.hub.stream(stream_id).turns[0].answer.num_tokens
    plain = list(client.chat.completions.create(model=f"stream:{stream_id}", messages=messages(), stream=True))
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in plain)


def test_the_clients_own_accumulator_puts_a_stream_together(
    served: Served, client: openai.OpenAI, stream_id: str
) -> None:
    with client.chat.completions.stream(model=f"stream:{stream_id}", messages=messages()) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "".join(deltas) == said(served, stream_id)


def test_the_async_client_asks_several_at_once(served: Served, stream_id: str) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def ask() -> str:
                parts = await client.chat.completions.create(
                    model=f"stream:{stream_id}", messages=messages(), stream=True
                )
                return "".join([part.choices[0].delta.content or "" async for part in parts])

            async def respond() -> str:
                return (await client.responses.create(model=f"stream:{stream_id}", input=QUESTION)).output_text

            return await asyncio.gather(ask(), respond(), ask(), respond())

    assert set(asyncio.run(ask_all())) == {said(served, stream_id)}


def test_sampling_and_length_are_passed_on(served: Served, client: openai.OpenAI, stream_id: str) -> None:
    def ask(**options):
        return client.chat.completions.create(model=f"stream:{stream_id}", messages=messages(), **options).choices[0]

    whole = said(served, stream_id)
    for name in ("max_tokens", "max_completion_tokens"):
        short = ask(**{name: 1})
        assert short.finish_reason == "length"
        assert whole.startswith(short.message.content)
    assert ask(max_tokens=1_000_000).message.content == whole  # at most: as many as the server allows
    assert ask(stop=[whole[1:3], "zzz"]).message.content == whole[:1]
    assert ask(stop=whole[1:3]).message.content == whole[:1]
    wild = {"temperature": 5.0, "top_p": 0.99, "max_tokens": 8}
    assert ask(seed=3, **wild).message.content == ask(seed=3, **wild).message.content
    assert len({ask(seed=seed, **wild).message.content for seed in range(4)}) > 1
    assert ask(n=1, tools=[], response_format={"type": "text"}, user="me", metadata={"a": "b"}).message.content == whole


def test_a_question_may_be_asked_at_a_time(client: openai.OpenAI, stream_id: str) -> None:
    extra = {"at": "00:06"}
    completion = client.chat.completions.create(model=f"stream:{stream_id}", messages=messages(), extra_body=extra)
    assert completion.model_extra["vstream"]["snapshot_seconds"] == 6.0


EARLIER = [
    {"role": "user", "content": "what was first?"},
    {"role": "assistant", "content": "a red heart"},
    {"role": "user", "content": QUESTION},
]


def test_earlier_messages_are_left_out_and_it_is_said(served: Served, client: openai.OpenAI, stream_id: str) -> None:
    completion = client.chat.completions.create(model=f"stream:{stream_id}", messages=EARLIER)
    assert completion.choices[0].message.content == said(served, stream_id)
    assert completion.model_extra["vstream"]["ignored_messages"] == 2
    assert completion.model_extra["vstream"]["earlier"] is None


def test_a_dialogue_hears_its_own_earlier_turns(served: Served, client: openai.OpenAI, video: Path) -> None:
    name = f"stream:{served.open(video, dialogue=True)}"
    counts = [
        client.chat.completions.create(model=name, messages=messages()).model_extra["vstream"]["earlier"]
        for _ in range(2)
    ]
    assert counts == [0, 1]
    served.close_all()


# Pictures


def test_a_picture_without_a_stream_is_watched_asked_about_and_forgotten(served: Served, client: openai.OpenAI) -> None:
    def ask(*parts: dict, **options):
        content = [{"type": "text", "text": "what colour is it?"}, *parts]
        return client.chat.completions.create(model="tiny", messages=messages(content), **options)

    one = ask(image_part(data_url((200, 30, 30), "JPEG")))
    assert one.choices[0].message.content
    assert one.model_extra["vstream"]["stream_id"] is None
    assert one.model_extra["vstream"]["snapshot_seconds"] == 0.0
    assert one.model_extra["evidence"][0]["picture_url"] is None
    three = ask(*(image_part(data_url((20, shade, 30))) for shade in (10, 100, 240)))
    assert three.model_extra["vstream"]["snapshot_seconds"] == 2.0
    parts = list(ask(image_part(data_url((1, 2, 3))), stream=True))
    assert parts[-1].choices[0].finish_reason == "stop"
    wait_for(lambda: served.hub.streams() == [])
    wait_for(lambda: served.hub.memories() == [])


def test_a_conversation_about_a_picture_goes_on(served: Served, client: openai.OpenAI) -> None:
    picture = [{"type": "text", "text": "what is it?"}, image_part(data_url((200, 30, 30)))]
    talk = [*messages(picture), {"role": "assistant", "content": "red"}, *messages("and its shape?")]
    completion = client.chat.completions.create(model="tiny", messages=talk)
    assert completion.model_extra["vstream"]["ignored_messages"] == 2
    assert completion.model_extra["evidence"] != []


def test_a_picture_in_a_response(served: Served, client: openai.OpenAI) -> None:
    picture = {"type": "input_image", "image_url": data_url((200, 30, 30)), "detail": "auto"}
    content = [{"type": "input_text", "text": "what is it?"}, picture]
    response = client.responses.create(model="tiny", input=[{"role": "user", "content": content}])
    assert response.output_text
    wait_for(lambda: served.hub.streams() == [])


# Responses


def test_a_response(served: Served, client: openai.OpenAI, stream_id: str) -> None:
    response = client.responses.create(model=f"stream:{stream_id}", input=QUESTION, metadata={"mine": "1"})
    assert response.output_text == said(served, stream_id)
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert response.metadata == {"mine": "1"}
    answer = served.hub.stream(stream_id).turns[0].answer
    assert response.usage.input_tokens == answer.num_prompt_tokens
    assert response.usage.output_tokens == answer.num_tokens
    assert response.model_extra["evidence"][0]["picture_url"]
    short = client.responses.create(model=f"stream:{stream_id}", input=messages(), max_output_tokens=1)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_streamed_response_has_all_events_in_order(served: Served, client: openai.OpenAI, stream_id: str) -> None:
    with client.responses.stream(model=f"stream:{stream_id}", input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "".join(event.delta for event in deltas) == said(served, stream_id)
    assert deltas[-1].snapshot == final.output_text
    assert final.usage.output_tokens >= 1
    assert final.model_extra["evidence"] != []
    raw = client.responses.create(model=f"stream:{stream_id}", input=QUESTION, max_output_tokens=1, stream=True)
    assert list(raw)[-1].type == "response.incomplete"


def test_a_response_that_fails_says_why(served: Served, client: openai.OpenAI, stream_id: str) -> None:
    late = {"model": f"stream:{stream_id}", "extra_body": {"at": 99}}
    with pytest.raises(openai.BadRequestError, match="ends at 00:12"):
        client.responses.create(input=QUESTION, **late)
    last = list(client.responses.create(input=QUESTION, stream=True, **late))[-1]
    assert last.type == "response.failed"
    assert "ends at 00:12" in last.response.error.message
    with pytest.raises(openai.APIError, match="ends at 00:12"):
        list(client.chat.completions.create(messages=messages(), stream=True, **late))


# Refusals


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("options", "kind", "param", "words"),
    [
        ({"n": 2}, 400, "n", "n cannot be served"),
        ({"tools": [TOOL]}, 400, "tools", "tools cannot be served"),
        ({"logprobs": True}, 400, "logprobs", "logprobs cannot be served"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "cannot be served"),
        ({"presence_penalty": 1.0}, 400, "presence_penalty", "cannot be served"),
        ({"store": True}, 400, "store", "/turns has the conversation"),
        ({"extra_body": {"temprature": 1}}, 400, "temprature", "not known here"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"model": "gpt-4o"}, 404, "model", "there are tiny, stream:ID"),
        ({"model": "stream:000000000000"}, 404, None, "no open stream"),
        ({"model": "tiny"}, 400, "model", "no stream is named"),
        ({"extra_body": {"stream_id": "000000000000"}}, 400, "stream_id", "stream_id names 000000000000"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": messages("")}, 400, None, "the question is empty"),
        ({"messages": EARLIER[:2]}, 400, "messages", "must be the user's"),
        ({"messages": [{"role": "system", "content": "be brief"}, *messages()]}, 400, "messages.0", "system prompt"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}, *messages()]},
            400,
            "messages.0",
            "tools",
        ),
        ({"messages": messages([image_part("http:" + "//127.0.0.1/a.png")])}, 400, "image_url", "nothing is fetched"),
        ({"messages": messages([image_part("file:" + "///etc/passwd")])}, 400, "image_url", "nothing is fetched"),
        ({"messages": messages([image_part("data:image/png;base64,?")])}, 400, "image_url", "not base64"),
        ({"messages": messages([image_part("data:image/png;base64,aGVsbG8=")]), "model": "tiny"}, 400, None, "no JPEG"),
        ({"messages": messages([image_part(data_url((1, 2, 3)))])}, 400, "messages", "leave out the pictures"),
        ({"messages": messages([{"type": "video_url", "video_url": {"url": "x"}}])}, 400, "messages.0", "/v1/streams"),
        ({"messages": messages([{"type": "input_video"}])}, 400, "messages.0", "/v1/streams"),
        ({"messages": messages([{"type": "input_audio"}])}, 400, "messages.0", "sound is not heard"),
        ({"messages": messages([{"type": "text", "text": 3}])}, 400, "messages", "the form"),
        ({"messages": messages([image_part(data_url((1, 2, 3)))] * 17), "model": "tiny"}, 400, None, "at most 16"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    served: Served, client: openai.OpenAI, stream_id: str, options: dict, kind: int, param: str | None, words: str
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**{"model": f"stream:{stream_id}", "messages": messages(), **options})
    assert refused.value.status_code == kind
    assert refused.value.param == param
    assert words in refused.value.body["message"]
    assert "\n" not in refused.value.body["message"]
    assert [stream.id for stream in served.hub.streams()] == [stream_id]
    assert served.hub.stream(stream_id).turns == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"instructions": "be brief"}, "system prompt"),
        ({"previous_response_id": "resp_1"}, '{"dialogue": true}'),
        ({"background": True}, "background cannot be served"),
        ({"text": {"format": {"type": "json_object"}}}, "text cannot be served"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "/v1/uploads"),
    ],
)
def test_responses_that_cannot_be_served(client: openai.OpenAI, stream_id: str, options: dict, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words.replace("{", r"\{")):
        client.responses.create(**{"model": f"stream:{stream_id}", "input": QUESTION, **options})


# Clients that go away


@pytest.fixture
def slow_tokens(monkeypatch: pytest.MonkeyPatch) -> float:
    return slow_down(monkeypatch)


@pytest.mark.parametrize("route", ["chat/completions", "responses"])
def test_a_client_that_closes_its_stream_frees_the_work(
    served: Served,
    stream_id: str,
    slow_tokens: float,
    route: str,
) -> None:
    asked = {"messages": messages()} if route.startswith("chat") else {"input": QUESTION}
    options = {"temperature": LONG["temperature"], "stream": True, "seed": LONG["seed"], "max_tokens": 200}
    if route == "responses":
        options = {"temperature": LONG["temperature"], "stream": True}
    stream = served.hub.stream(stream_id)
    body = {"model": f"stream:{stream_id}", **asked, **options}
    with httpx.stream("POST", f"{served.url}/v1/{route}", json=body, timeout=30) as reply:
        wait_for(lambda: stream.turns and stream.turns[-1].answer.num_tokens >= 2)
        assert reply.status_code == 200
    answer = stream.turns[-1].answer
    wait_for(lambda: answer.done, 2 * slow_tokens + 1.0)
    assert answer.finish_reason == "cancelled"


def test_a_picture_whose_client_goes_is_forgotten_too(served: Served, slow_tokens: float) -> None:
    content = [{"type": "text", "text": "what?"}, image_part(data_url((9, 9, 9)))]
    body = {"model": "tiny", "messages": messages(content), "temperature": 8.0, "seed": 5, "max_tokens": 200}
    with httpx.Client(base_url=served.url) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body, timeout=0.5)
    wait_for(lambda: served.hub.streams() == [])


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            "chat/completions",
            '"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]',
            "half",
        ),
        ("responses", '"input": "x", "metadata": {"a": "\\ud800"}', "metadata holds what JSON cannot say"),
        ("responses", '"input": "x", "metadata": {"a": NaN}', "metadata holds what JSON cannot say"),
    ],
)
def test_what_json_cannot_say_is_refused_before_anything_is_asked(
    served: Served, stream_id: str, path: str, body: str, words: str
) -> None:
    content = f'{{"model": "stream:{stream_id}", {body}}}'
    reply = served.http.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert served.hub.stream(stream_id).turns == ()


def test_a_picture_that_is_not_ascii_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="data: URL is not base64"):
        client.chat.completions.create(
            model="tiny", messages=messages([image_part("data:image/png;base64,é"), {"type": "text", "text": "?"}])
        )

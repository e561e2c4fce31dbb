"""Standing questions of the API: asked, listed, removed, limited, kept; events as JSON and as server-sent events."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from alert_films import HEART, OTHER, TIMES, heart_film, heart_world
from PIL import Image
from receivers import JPEG, event_at, receiving
from serving import Served, make_hub, serve, wait_for

from vstream.app.alerts.delivery import Delivery
from vstream.app.alerts.endpoint import Endpoint
from vstream.app.alerts.notices import Notice
from vstream.app.alerts.outbox import Outbox
from vstream.app.alerts.standing import MAX_ALERTS
from vstream.app.alerts.webhook import Webhook
from vstream.app.lab.render import draw
from vstream.app.output import PictureFolder
from vstream.app.serve import alerts as stream_alerts
from vstream.standing import AlertOptions

GAP = AlertOptions().on - AlertOptions().off
SSE = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(make_hub(tmp_path_factory.mktemp("memories"))) as served:
        yield served


@pytest.fixture
def stream_id(served: Served) -> Iterator[str]:
    """A stream that waits for its frames."""
    yield served.open("push", fps=1.0)
    served.close_all()


def add(served: Served, stream_id: str, text: str = HEART, **more: Any) -> dict[str, Any]:
    reply = served.http.post(f"/v1/streams/{stream_id}/alerts", json={"text": text, **more})
    assert reply.status_code == 201, reply.text
    return reply.json()


def push_world(served: Served, stream_id: str, until_seconds: int, *, since_seconds: int = 0) -> None:
    """A frame a second of the world with hearts; no clip comes before the one before it was looked at."""
    world, session = heart_world(), served.hub.stream(stream_id).session
    for seconds in range(since_seconds, until_seconds):
        buffer = io.BytesIO()
        Image.fromarray(draw(world, seconds)).save(buffer, "PNG")
        reply = served.http.post(
            f"/v1/streams/{stream_id}/frames?seconds={seconds}",
            content=buffer.getvalue(),
            headers={"content-type": "image/png"},
        )
        assert reply.status_code == 200, reply.text
        wait_for(lambda: session.ingest.peek_clip() is None and not session.status().lag_seconds > 4)
        wait_for(lambda: not session._lookout.is_due)


def tell(served: Served, stream_id: str, *seconds: float, end: bool = False) -> None:
    """Events made by hand."""
    for each in seconds:
        event = event_at(each, each + 5 if end else None)
        served.hub.stream(stream_id).alerts._tell(Notice(event, "push", stream_id))


class Listening:
    """A client that hears events."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        assert next(self._lines) == ": events"
        next(self._lines)

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next events: "name", "id", and their data."""
        return [self._event() for _ in range(count)]

    def _event(self) -> dict[str, Any]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line and fields:
                return {"name": fields["event"], "key": fields["id"], **json.loads(fields["data"])}
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
        raise AssertionError("the stream of events has ended")

    def rest(self) -> list[str]:
        return [line for line in self._lines if line and not line.startswith(":")]


@contextmanager
def listening(served: Served, stream_id: str, last: str | None = None) -> Iterator[Listening]:
    headers = SSE if last is None else SSE | {"last-event-id": last}
    with served.http.stream("GET", f"/v1/streams/{stream_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Listening(response)


# Asking ---------------------------------------------------------------------------------------------------------------


def test_they_are_asked_listed_and_removed(served: Served, stream_id: str) -> None:
    path = f"/v1/streams/{stream_id}/alerts"
    first, second = add(served, stream_id), add(served, stream_id, OTHER, on=7.0, cool_down_seconds=0.5)
    assert (first["text"], first["stream_id"], first["since_seconds"], first["looked"]) == (HEART, stream_id, None, 0)
    assert (second["on"], second["off"], second["cool_down_seconds"]) == (7.0, 7.0 - GAP, 0.5)
    assert served.http.get(path).json()["data"] == [first, second]
    again = served.http.post(path, json={"text": f"  {HEART} "})
    assert (again.status_code, "is looked for already" in again.text) == (400, True)
    assert served.http.delete(f"{path}/{first['id']}").json() == {"id": first["id"], "deleted": True}
    gone = served.http.delete(f"{path}/{first['id']}")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert [one["text"] for one in served.http.get(path).json()["data"]] == [OTHER]


def test_there_may_be_so_many(served: Served, stream_id: str) -> None:
    for number in range(MAX_ALERTS):
        add(served, stream_id, f"was there a {number}?")
    path = f"/v1/streams/{stream_id}/alerts"
    reply = served.http.post(path, json={"text": HEART})
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "busy")
    assert "16 standing questions, which is the most; remove one" in reply.text
    served.http.delete(f"{path}/{served.http.get(path).json()['data'][0]['id']}")
    add(served, stream_id)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 422, "text is missing"),
        ({"text": ""}, 422, "text: "),
        ({"text": "x" * 1001}, 422, "text: "),
        ({"text": " \n "}, 400, "a standing question has 1 to 1000 characters that can be seen, got 0"),
        ({"text": HEART, "on": 1, "off": 1.0}, 400, "off must be below on"),
        ({"text": HEART, "on": 1000}, 422, "on: "),
        ({"text": HEART, "cool_down_seconds": -1}, 422, "cool_down_seconds: "),
        ({"text": HEART, "every": 1}, 422, "every is not known here"),
    ],
)
def test_what_will_not_do_is_refused(
    served: Served, stream_id: str, body: dict[str, Any], status: int, sentence: str
) -> None:
    reply = served.http.post(f"/v1/streams/{stream_id}/alerts", json=body)
    assert (reply.status_code, sentence in reply.json()["error"]["message"]) == (status, True), reply.text
    assert served.http.get(f"/v1/streams/{stream_id}/alerts").json()["data"] == []


@pytest.mark.parametrize("path", ["alerts", "events", "events/1.jpg"])
def test_of_streams_that_are_not_there_nothing_is_told(served: Served, path: str) -> None:
    for headers in ({}, SSE):
        reply = served.http.get(f"/v1/streams/nothing/{path}", headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


# Events ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_comes_to_pass_is_told_as_it_comes_and_kept(served: Served, stream_id: str) -> None:
    alert = add(served, stream_id)
    add(served, stream_id, OTHER)
    events = f"/v1/streams/{stream_id}/events"
    with listening(served, stream_id) as hearing:
        push_world(served, stream_id, 18)
        begun, ended = hearing.take(2)
        assert served.hub.stream(stream_id).alerts.num_listeners == 1
    wait_for(lambda: served.hub.stream(stream_id).alerts.num_listeners == 0)
    assert (begun["name"], ended["name"], begun["id"]) == ("start", "end", ended["id"])
    assert (begun["text"], begun["alert_id"], begun["stream_id"]) == (HEART, alert["id"], stream_id)
    assert TIMES[0][0] <= begun["start_seconds"] <= TIMES[0][1]
    assert begun["end_seconds"] is None
    push_world(served, stream_id, 32, since_seconds=18)
    served.http.post(f"/v1/streams/{stream_id}/end")
    wait_for(lambda: served.http.get(events).json()["data"][-1]["end_seconds"])
    kept = served.http.get(events).json()["data"]
    assert [event["id"] for event in kept] == [begun["id"], kept[1]["id"]]
    assert kept[0] == {name: value for name, value in ended.items() if name not in ("name", "key")}
    assert TIMES[1][0] <= kept[1]["start_seconds"] <= TIMES[1][1]
    picture = served.http.get(kept[1]["picture_url"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert float(picture.headers["x-stream-seconds"]) == kept[1]["seconds"]
    assert Image.open(io.BytesIO(picture.content)).size == (96, 96)
    with listening(served, stream_id, begun["key"]) as hearing:  # who was away for a while
        missed = hearing.take(3)
    assert [(one["name"], one["id"]) for one in missed] == [
        ("end", begun["id"]), ("start", kept[1]["id"]), ("end", kept[1]["id"]),
    ]  # fmt: skip
    (now, other) = served.http.get(f"/v1/streams/{stream_id}/alerts").json()["data"]
    assert (now["events"], other["events"]) == (2, 0)
    assert now["looked"] == other["looked"] >= 7
    assert now["skipped"] == 0
    assert now["since_seconds"] is None
    assert 0 <= other["confidence"] < 0.5


def test_who_knows_of_nothing_hears_everything_that_is_kept(served: Served, stream_id: str) -> None:
    tell(served, stream_id, 1.0, 2.0, 3.0)
    with listening(served, stream_id) as hearing:
        first, _, third = hearing.take(3)
        tell(served, stream_id, 4.0)
        assert hearing.take(1)[0]["start_seconds"] == 4.0
    assert [first["start_seconds"], third["start_seconds"]] == [1.0, 3.0]
    for last, seconds in ((first["key"], 2.0), (third["key"], 4.0), ("unknown", 1.0), ("", 1.0)):
        with listening(served, stream_id, last) as hearing:
            assert hearing.take(1)[0]["start_seconds"] == seconds


def test_history_is_bounded(served: Served, stream_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_alerts, "PICTURED_NOTICES", 3)
    tell(served, stream_id, *range(1, 301))
    alerts = served.hub.stream(stream_id).alerts
    assert len(alerts.notices) == stream_alerts.KEPT_NOTICES == 200
    assert [bool(notice.event.picture) for notice in alerts.notices] == [False] * 197 + [True] * 3
    data = served.http.get(f"/v1/streams/{stream_id}/events").json()["data"]
    assert [event["start_seconds"] for event in data] == list(range(101, 301))
    assert data[0]["picture_url"] is None
    assert served.http.get(data[-1]["picture_url"]).content == JPEG
    assert served.http.get(f"/v1/streams/{stream_id}/events/nothing.jpg").status_code == 404
    old = served.http.get(f"/v1/streams/{stream_id}/events/{data[0]['id']}.jpg")
    assert (old.status_code, old.json()["error"]["code"]) == (404, "no_picture")


def test_an_event_that_is_over_is_one_event(served: Served, stream_id: str) -> None:
    tell(served, stream_id, 1.0, 2.0)
    tell(served, stream_id, 1.0, end=True)
    data = served.http.get(f"/v1/streams/{stream_id}/events").json()["data"]
    assert [(event["start_seconds"], event["end_seconds"]) for event in data] == [(1.0, 6.0), (2.0, None)]


def test_those_who_listen_are_let_go_when_the_stream_is_closed(served: Served, stream_id: str) -> None:
    with listening(served, stream_id) as hearing:
        tell(served, stream_id, 1.0)
        served.hub.close_stream(stream_id)
        assert [line.split(":")[0] for line in hearing.rest()] == ["id", "event", "data"]


def test_many_may_listen_and_go(served: Served, stream_id: str) -> None:
    alerts = served.hub.stream(stream_id).alerts
    for _ in range(5):
        with listening(served, stream_id) as one, listening(served, stream_id) as other:
            assert one.response.is_closed is other.response.is_closed is False
            assert alerts.num_listeners == 2
        wait_for(lambda: alerts.num_listeners == 0)
    tell(served, stream_id, 1.0)


# Further --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_a_kept_memory_they_go_on(tmp_path: Path) -> None:
    film = heart_film(tmp_path / "hearts.mp4")
    with serve(make_hub(tmp_path / "memories")) as served:
        stream_id = served.open(film, keep=True, realtime=True, fps=1.0)
        asked = add(served, stream_id, cool_down_seconds=3.0)
        served.http.delete(f"/v1/streams/{stream_id}/alerts/{add(served, stream_id, OTHER)['id']}")
        wait_for(lambda: served.hub.stream(stream_id).session.memory.last_seconds is not None)
        served.hub.close_stream(stream_id)
        reply = served.http.post(f"/v1/memories/{stream_id}/resume")
        assert reply.status_code == 201, reply.text
        (alert,) = served.http.get(f"/v1/streams/{stream_id}/alerts").json()["data"]
        same = ("id", "text", "on", "off", "cool_down_seconds")
        assert {name: alert[name] for name in same} == {name: asked[name] for name in same}
        served.hub.close_stream(stream_id)
        alone = served.http.post(f"/v1/memories/{stream_id}/resume", json={"source": ""})
        assert alone.status_code == 201
        refused = served.http.post(f"/v1/streams/{stream_id}/alerts", json={"text": HEART})
        assert (refused.status_code, "needs a stream to watch" in refused.text) == (400, True)
        assert served.http.get(f"/v1/streams/{stream_id}/alerts").json()["data"] == []


def test_the_servers_webhook_gets_events_of_all_streams(tmp_path: Path) -> None:
    with receiving() as receiver:
        outbox = Outbox(tmp_path / "outbox")
        delivery = Delivery(
            PictureFolder(None), make_webhook=lambda told: Webhook(Endpoint(receiver.url), outbox, told=told)
        )
        with serve(make_hub(tmp_path / "memories", delivery=delivery)) as served:
            ids = [served.open("push"), served.open("push")]
            for stream_id in ids:
                tell(served, stream_id, 1.0)
            got = [request.record for request in receiver.wait_for(2)]
            assert [one["stream_id"] for one in got] == ids
            assert len({one["id"] for one in got}) == 2
            keys = [served.http.get(f"/v1/streams/{each}/events").json()["data"][0]["id"] for each in ids]
            assert [one["id"] for one in got] == keys

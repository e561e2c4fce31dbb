"""Eight questions at once about two streams, through HTTP: each answer is the one it gets when asked alone."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from serving import make_hub, serve, write_video

QUESTIONS = ("what is there now?", "which colour is it?", "what was first?", "is there a heart?")
AT = ("00:05", "00:09", "end", "00:07")


async def ask(client: httpx.AsyncClient, stream_id: str, number: int, as_events: bool) -> tuple[str, list]:
    """(answer, where its evidence begins): frames that were not encoded yet then are a part of a block later."""
    body = {"question": QUESTIONS[number], "at": AT[number], "max_tokens": 12, "stream": as_events}
    reply = await client.post(f"/v1/streams/{stream_id}/ask", json=body)
    assert reply.status_code == 200, reply.text
    turn = json.loads(reply.text.strip().split("data: ")[-1]) if as_events else reply.json()
    return turn["answer"], sorted(one["start_seconds"] for one in turn["evidence"])


async def ask_all(url: str, ids: list[str], *, together: bool) -> dict:
    """Every question about every stream, half of them as events."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        jobs = {(i, n): ask(client, ids[i], n, as_events=bool(n % 2)) for i in range(2) for n in range(4)}
        if together:
            return dict(zip(jobs, await asyncio.gather(*jobs.values()), strict=True))
        return {key: await job for key, job in jobs.items()}


@pytest.mark.slow
def test_eight_questions_at_once_are_answered_as_each_alone(tmp_path) -> None:
    videos = [write_video(tmp_path / f"{rate}.mp4", seconds=12, rate=rate) for rate in (5, 8)]
    with serve(make_hub(tmp_path / "memories")) as served:
        watched = [served.open(video) for video in videos]
        together = asyncio.run(ask_all(served.url, watched, together=True))  # while both are being watched
        again = asyncio.run(ask_all(served.url, watched, together=True))  # and when they have been
        served.close_all()
        alone = [served.open(video) for video in videos]
        one_by_one = asyncio.run(ask_all(served.url, alone, together=False))
        assert together == again == one_by_one
        assert len({answer for answer, _ in together.values()}) > 1  # they are not all the same
        running = [stream.session.status().running for stream in served.hub.streams()]
        assert running == [0, 0]
        text = served.http.get("/metrics").text
        assert 'vstream_questions_total{outcome="stop"}' in text

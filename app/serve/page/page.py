"""The page's layout and events in Gradio, mounted on the server's FastAPI app.

Gradio carries HTML from the server and events back; what the HTML says is made in the other files of this folder, and
what only a browser can do is in static/page.js. This module knows nothing of models or memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; nothing may leave the machine

import gradio as gr

from vstream.app.serve.following import told_of
from vstream.app.serve.page.chat import conversation
from vstream.app.serve.page.html import filled, options, static
from vstream.app.serve.page.routes import router
from vstream.app.serve.page.visit import Panels, Visit, Visits, What
from vstream.app.serve.page.words import OWN_PRESET, model_about, preset_about

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vstream.answer import Answer
    from vstream.app.serve.allowed import SourcePolicy
    from vstream.app.serve.hub import Hub
    from vstream.app.serve.uploads import Uploads

SYNTHETIC = "sample, or lavfi:testsrc2,realtime"
TICK_SECONDS = 1.0
WORDS_SECONDS = 0.15
"""A growing answer is sent at most so often."""

ON_LOAD = "vstreamPage.connect(trigger, ['act', 'ask']); watch('value', () => vstreamPage.sync());"
MAP_ON_LOAD = "watch('value', () => vstreamPage.mark());"
ALERTS_ON_LOAD = "watch('value', () => vstreamPage.taken());"
NOTICE_ON_LOAD = "watch('value', () => vstreamPage.told());"
LOG_ON_LOAD = "watch('value', () => vstreamPage.follow());"
QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "multiple",
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""How the page's events run: side by side, without Gradio's spinners, and in no API."""


def mount_page(app: FastAPI, hub: Hub, policy: SourcePolicy, uploads: Uploads | None = None) -> FastAPI:
    """Puts the page at "/" and its routes below /v1; to be called after all other routes are there.

    Args:
        app: with the API's routes, which page.js uses, and a `Stopping` at `app.state.stopping`.
        hub: what the page shows.
        policy: says on the page what may be opened.
        uploads: None where the server takes none.
    """
    app.include_router(router(hub))
    page = build(hub, policy.describe(), example(policy, uploads), takes_uploads=uploads is not None)
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    head = f"<style>{static('page.css')}</style><script>{static('page.js')}</script>"
    mounted: FastAPI = gr.mount_gradio_app(
        app, page, path="/", server_name="127.0.0.1", theme=theme, head=head, footer_links=[], run_history=False,
        show_error=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False, max_file_size=0,
    )  # fmt: skip
    return mounted


def example(policy: SourcePolicy, uploads: Uploads | None) -> str:
    """What may be typed as a source here: nothing that would be refused."""
    folders = policy.folders[:-1] if uploads is not None else policy.folders
    given = ["a file, a folder of pictures"] * bool(folders) + [f"rtsp://{host.text}/…" for host in policy.hosts[:1]]
    given += policy.cameras[:1]
    return ", ".join(given) if given else SYNTHETIC


def build(hub: Hub, may_open: str, example: str = "sample", *, takes_uploads: bool = True) -> gr.Blocks:
    """The page, not mounted yet; `may_open` says what sources there are, `example` what may be typed.

    What a page shows is kept in `Visits`: with a `gr.State` each page would hold a connection open (a heartbeat), and
    browsers have six for a server.
    """
    visits = Visits()
    page: gr.Blocks = gr.Blocks(title="vstream", analytics_enabled=False, fill_width=True)
    with page:
        panels = _lay_out(_begin(hub, may_open, example, takes_uploads))
        everything = list(panels)

        def load(request: gr.Request) -> tuple[Any, ...]:
            visit = Visit(hub, str(request.query_params.get("stream", "")))
            visits.keep(_session(request), visit)
            return _outputs(visit.panels(with_shelf=True))

        def tick(request: gr.Request) -> tuple[Any, ...]:
            visit = visits.find(_session(request))
            return _outputs(visit.news() if visit else Panels(*[None] * len(Panels._fields)))

        def act(event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
            for changed in visits.found(_session(request)).act(event.what):
                yield _outputs(changed)

        async def ask(event: gr.EventData, request: gr.Request) -> AsyncIterator[tuple[Any, Any]]:
            async for changed in asked(visits.found(_session(request)), event.what):
                yield changed

        page.load(load, None, everything, **QUIET)
        gr.Timer(TICK_SECONDS).tick(tick, None, everything, **{**QUIET, "trigger_mode": "once"})
        panels.state.act(act, None, everything, **QUIET)
        panels.state.ask(ask, None, [panels.log, panels.notice], **QUIET)
    return page


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _html(value: str = "", **more: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **{"js_on_load": None, **more})


def _begin(hub: Hub, may_open: str, example: str, takes_uploads: bool) -> str:
    """What is seen first."""
    return filled(
        "home.html",
        models=options(hub.models, {}, model_about),
        presets=options(("", *hub.presets), {"": OWN_PRESET}, preset_about),
        may_open=escape(may_open),
        example=escape(example),
        no_uploads="" if takes_uploads else "hidden",
    )


def _lay_out(begin: str) -> Any:
    """All parts, in their places; those that change."""
    parts: dict[str, gr.HTML] = {}
    with gr.Column(elem_id="page"):
        parts["top"] = _html(elem_id="top")
        _html(static("top.html"))
        with gr.Column(elem_id="home"):
            _html(begin)
            parts["shelf"] = _html()
        with gr.Row(elem_id="watch"):
            with gr.Column(elem_id="left"):
                with gr.Column(elem_id="stage-box"):
                    _html(static("stage.html"), elem_id="stage")
                    parts["overlay"] = _html(elem_id="status")
                parts["gauges"] = _html(elem_id="gauges")
                parts["map"] = _html(elem_id="map", js_on_load=MAP_ON_LOAD)
                with gr.Column(elem_id="alerts-box"):
                    _html(static("tell.html"), elem_id="tell")
                    parts["alerts"] = _html(elem_id="alerts", js_on_load=ALERTS_ON_LOAD)
            with gr.Column(elem_id="right"):
                parts["head"] = _html(elem_id="chat-head")
                parts["log"] = _html(elem_id="log-box", js_on_load=LOG_ON_LOAD)
                parts["notice"] = _html(elem_id="told", js_on_load=NOTICE_ON_LOAD)
                _html(static("ask.html"), elem_id="ask-box")
        _html(static("dialogs.html"))
        parts["state"] = _html(elem_id="state-box", js_on_load=ON_LOAD)
    return Panels(**parts)  # type: ignore[arg-type]  # the components, under the names of what they show


def _outputs(panels: Panels) -> tuple[Any, ...]:
    return tuple(gr.skip() if html is None else html for html in panels)


async def asked(visit: Visit, what: What) -> AsyncIterator[tuple[Any, Any]]:
    """Streams the conversation while the answer grows. The answer goes on when nobody listens any more."""
    turn = await asyncio.to_thread(visit.ask, what)
    if turn is None:
        yield gr.skip(), visit.told()
        return
    async for _ in growth(turn.answer):
        if visit.stream is not None:
            yield conversation(visit.stream), visit.told()


async def growth(answer: Answer, every_seconds: float = WORDS_SECONDS) -> AsyncIterator[None]:
    """Once now, then after each change, not too often, and once when it is over."""
    with told_of(answer) as changed:
        yield
        while not answer.done:
            await changed.wait()
            changed.clear()
            if not answer.done:
                yield
                await asyncio.sleep(every_seconds)
        yield

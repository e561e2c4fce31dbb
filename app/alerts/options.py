"""The options about standing questions, and what they mean. Light: nothing is imported to show the help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vstream.app.options import Options

if TYPE_CHECKING:
    from vstream.app.alerts.delivery import Delivered, Delivery
    from vstream.app.alerts.endpoint import Endpoint
    from vstream.app.alerts.webhook import Webhook
    from vstream.app.output import PictureFolder
    from vstream.standing import AlertOptions

ALERTS = "Standing questions"
OUTBOX = "outbox"


def _option(help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=ALERTS, show_default=False)


@dataclass(frozen=True, kw_only=True)
class DeliveryOptions:
    """Where events go besides the screen."""

    events: Annotated[
        Path | None, _option("File to which every event is added, a line of JSON each.", metavar="FILE.jsonl")
    ] = None
    webhook: Annotated[
        str | None, _option("Address to which every event is posted, until it is received.", metavar="URL")
    ] = None
    webhook_secret_file: Annotated[
        Path | None, _option("File with the secret that signs them (or VSTREAM_WEBHOOK_SECRET).", metavar="FILE")
    ] = None
    webhook_allow: Annotated[
        list[str] | None,
        _option("Host name that may have a private address; may be given often.", metavar="HOST"),
    ] = None

    def endpoint(self) -> Endpoint | None:
        """Where events are posted, checked; None for nowhere.

        Raises:
            ValueError: for an address, a secret or a host that will not do.
        """
        from vstream.app.alerts.endpoint import Endpoint, allowed_hosts, read_secret

        if self.webhook is None:
            for name, given in (("secret-file", self.webhook_secret_file), ("allow", self.webhook_allow)):
                if given:
                    raise ValueError(f"--webhook-{name} is about --webhook URL, which is not given")
            return None
        return Endpoint(self.webhook, read_secret(self.webhook_secret_file), allowed_hosts(self.webhook_allow or ()))

    def check_delivery(self) -> None:
        """Raises `ValueError` for what will not do, before anything slow."""
        from vstream.app.alerts.eventlog import EventLog

        self.endpoint()
        if self.events is not None:
            EventLog(self.events)

    def delivery(
        self,
        pictures: PictureFolder,
        home: Path | None,
        *,
        shown: Callable[[Delivered], None] = lambda delivered: None,
        told: Callable[[str], None],
    ) -> Delivery:
        """What carries events.

        Args:
            pictures: where pictures go.
            home: where letters of the webhook wait; the user's state folder if None.
            shown, told: as `Delivery` has them.

        Raises:
            ValueError: for what will not do.
        """
        from vstream.app.alerts.delivery import Delivery
        from vstream.app.alerts.eventlog import EventLog

        log = None if self.events is None else EventLog(self.events)
        endpoint = self.endpoint()
        webhook = _maker(endpoint, home) if endpoint else None
        return Delivery(pictures, log=log, make_webhook=webhook, shown=shown, told=told)


@dataclass(frozen=True, kw_only=True)
class WatchOptions(Options, DeliveryOptions):
    """What `vstream watch` takes besides."""

    alert: Annotated[
        list[str] | None,
        _option('Something to be told of: "a cat appears", "is the door open?"; may be given often.', metavar="TEXT"),
    ] = None
    alert_on: Annotated[
        float | None, _option("How sure it must be: log-odds above the usual, at which an event begins.")
    ] = None
    cool_down: Annotated[float | None, _option("Seconds after an event in which no other of its kind begins.")] = None
    forget_alerts: Annotated[
        bool,
        typer.Option("--forget-alerts", help="Those kept with the memory do not go on.", rich_help_panel=ALERTS),
    ] = False

    def alert_options(self) -> AlertOptions:
        """How standing questions are judged. Raises `ValueError` for what will not do."""
        from vstream.standing import AlertOptions

        usual = AlertOptions()
        on = usual.on if self.alert_on is None else self.alert_on
        cool_down = usual.cool_down_seconds if self.cool_down is None else self.cool_down
        return AlertOptions(on=on, off=on - (usual.on - usual.off), cool_down_seconds=cool_down)


def _maker(endpoint: Endpoint, home: Path | None) -> Callable[[Callable[[str], None]], Webhook]:
    """What makes the webhook: its outbox is a folder for each address."""
    from platformdirs import user_state_path

    from vstream.app.alerts.outbox import Outbox
    from vstream.app.alerts.webhook import Webhook

    root = home or user_state_path("vstream", appauthor=False)
    outbox = Outbox(root / OUTBOX / endpoint.name)
    return lambda told: Webhook(endpoint, outbox, told=told)

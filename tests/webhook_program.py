"""Sends one event by a webhook, in a process of its own that a test may kill: FOLDER URL SECRET."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from receivers import event_at

from vstream.app.alerts.delivery import Delivery
from vstream.app.alerts.endpoint import Endpoint
from vstream.app.alerts.eventlog import EventLog
from vstream.app.alerts.notices import Notice
from vstream.app.alerts.outbox import Outbox
from vstream.app.alerts.webhook import Patience, Webhook
from vstream.app.output import PictureFolder


def main(folder: Path, url: str, secret: str) -> None:
    outbox, endpoint = Outbox(folder / "outbox"), Endpoint(url, secret.encode())
    patience = Patience(first_seconds=0.1)
    delivery = Delivery(
        PictureFolder(folder),
        log=EventLog(folder / "events.jsonl"),
        make_webhook=lambda told: Webhook(endpoint, outbox, told=told, patience=patience),
    )
    delivery.put(Notice(event_at(12.0), "door.mp4"))
    delivery.settle()
    print("written down", flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])

"""The options of `vstream serve`, declared once. Light: nothing of the server is imported to show the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vstream.app.alerts.options import DeliveryOptions
from vstream.app.options import SessionOptions

TOKEN_VARIABLE = "VSTREAM_TOKEN"
NETWORK, LIMITS = "Who may come", "Limits"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(SessionOptions, DeliveryOptions):
    """As given; `listening.py` checks what is about the network."""

    host: Annotated[
        str, typer.Option(help="Address or name to listen at; 0.0.0.0 is every one.", rich_help_panel=NETWORK)
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", rich_help_panel=NETWORK)] = 7860
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="What may be watched besides the sample and uploads: a folder, a camera's host, webcam:0; "
            "may be given often.",
            metavar="DIR|HOST",
        ),
    ] = None
    memories: Annotated[
        Path | None, typer.Option(help="Folder where memories are kept (in the user's data folder).", metavar="DIR")
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the token that visitors must show (or {TOKEN_VARIABLE}).",
            metavar="FILE",
            rich_help_panel=NETWORK,
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Another name that browsers may know this server by.", metavar="NAME", rich_help_panel=NETWORK
        ),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate, for HTTPS.", metavar="FILE", rich_help_panel=NETWORK)
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's key.", metavar="FILE", rich_help_panel=NETWORK)
    ] = None
    max_streams: Annotated[int, typer.Option(help="Most streams at once.", rich_help_panel=LIMITS)] = 8
    questions_per_minute: Annotated[int, typer.Option(help="Most questions of a client.", rich_help_panel=LIMITS)] = 60
    requests_per_second: Annotated[
        int, typer.Option(help="Most other requests of a client.", rich_help_panel=LIMITS)
    ] = 50
    max_upload_mib: Annotated[int, typer.Option(help="Largest file to upload, MiB.", rich_help_panel=LIMITS)] = 4096
    stop_seconds: Annotated[
        float, typer.Option(help="How long answers may go on when the server is stopped.", rich_help_panel=LIMITS)
    ] = 10.0
    access_log: Annotated[bool, typer.Option("--access-log", help="A line on stderr for every request.")] = False

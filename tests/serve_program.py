"""A server in a process of its own, for tests of signals: says its address, and what it was told at the end."""

from __future__ import annotations

import sys
from typing import Any

from gate_app import make_app
from servers import TOKEN

from vstream.app.serve.serving import ServeOptions, listen, run


def main(stop_seconds: float) -> None:
    app: Any = make_app()

    def on_stop(seconds: float) -> None:
        print(f"stopped, {seconds:.1f} s left, ended {app.state.work.ended}, open {app.state.work.open}", flush=True)

    listener = listen(ServeOptions(port=0, stop_seconds=stop_seconds), {"VSTREAM_TOKEN": TOKEN})
    run(app, listener, on_stop, told=lambda line: print(line, flush=True))
    print("over", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))

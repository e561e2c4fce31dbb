"""A real RTSP camera for tests: GStreamer's RTSP server, in a process that can be stopped, killed and started again.

Run as a program (by the system's own Python, which has the bindings) it serves a video file; imported, it gives tests
`RtspServer`, which runs that program. Every client sees the file from its first frame, at the file's own pace, and then
the end of the stream. This module knows nothing of vstream.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gir1.2-gst-plugins-base-1.0 "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-rtsp"
)
PAYLOADERS = {"h264": "h264parse ! rtph264pay", "h265": "h265parse ! rtph265pay"}
ELEMENTS = ("filesrc", "qtdemux", "h264parse", "rtph264pay", "h265parse", "rtph265pay", "rtpbin")


def require_gstreamer() -> None:
    """Skips the test where the server cannot run; under CI that is a failure."""
    import pytest  # the system's Python, which runs this file too, may not have it

    there = Path(SYSTEM_PYTHON).exists()
    if not there or subprocess.run([SYSTEM_PYTHON, __file__, "--check"], capture_output=True).returncode:
        message = f"COULD NOT TEST cameras: no GStreamer RTSP server, apt-get install {PACKAGES}"
        assert os.environ.get("CI") != "true", message
        pytest.skip(message)


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class RtspServer:
    """An RTSP server process on a port of its own; a context manager that leaves no process behind.

    Attributes:
        port: stays the same over restarts.
    """

    def __init__(self, video: Path, *, codec: str = "h264", user: str | None = None, password: str = "") -> None:
        """`video` is an mp4 file of that codec; with `user` a client must give these credentials (RTSP basic)."""
        self.port = free_port()
        self._arguments = ["--video", str(video), "--port", str(self.port), "--codec", codec]
        self._arguments += [] if user is None else ["--user", user, "--password", password]
        self._process: subprocess.Popen[str] | None = None

    def url(self, credentials: str = "", query: str = "") -> str:
        """The stream's address; `credentials` as `user:password`, percent-encoded already."""
        return f"rtsp://{credentials}{'@' * bool(credentials)}127.0.0.1:{self.port}/test{'?' * bool(query)}{query}"

    def start(self) -> None:
        """Starts the process, or another after `kill`; returns when it listens."""
        assert self._process is None, "the server is running"
        command = [SYSTEM_PYTHON, __file__, *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the server did not start"

    def stall(self) -> None:
        """The process stands still (SIGSTOP): connections stay open, nothing comes."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undoes `stall`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), stalled or not."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the server is not running"
        os.kill(self._process.pid, number)

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class BlackHole:
    """A server that takes connections and never says a word; entering gives its port."""

    def __enter__(self) -> int:
        self._listening = socket.create_server(("127.0.0.1", 0))
        port: int = self._listening.getsockname()[1]
        return port

    def __exit__(self, *error: object) -> None:
        self._listening.close()


def serve(options: argparse.Namespace) -> None:
    """Runs the server for ever, or, with `--check`, only looks whether it could run."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    missing = [name for name in ELEMENTS if Gst.ElementFactory.find(name) is None]
    assert not missing, f"GStreamer has no {', '.join(missing)}"
    if options.check:
        return
    server = GstRtspServer.RTSPServer(service=str(options.port), address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f'( filesrc location="{options.video}" ! qtdemux ! {PAYLOADERS[options.codec]} name=pay0 )')
    server.get_mount_points().add_factory("/test", factory)
    if options.user is not None:
        lock(GstRtspServer, server, factory, options.user, options.password)
    assert server.attach(None), f"port {options.port} is taken"
    print("ready", flush=True)
    GLib.MainLoop().run()


def lock(rtsp: object, server: object, factory: object, user: str, password: str) -> None:
    """Lets only this user with this password watch; `rtsp` is the module of bindings."""
    authentication, token, permissions = rtsp.RTSPAuth(), rtsp.RTSPToken(), rtsp.RTSPPermissions()
    token.set_string("media.factory.role", "watcher")
    permissions.add_permission_for_role("watcher", "media.factory.access", True)
    permissions.add_permission_for_role("watcher", "media.factory.construct", True)
    authentication.add_basic(rtsp.RTSPAuth.make_basic(user, password), token)
    factory.set_permissions(permissions)
    server.set_auth(authentication)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--packages", action="version", version=PACKAGES, help="what Debian calls what this needs")
    parser.add_argument("--video")
    parser.add_argument("--port", type=int)
    parser.add_argument("--codec", choices=PAYLOADERS, default="h264")
    parser.add_argument("--user")
    parser.add_argument("--password", default="")
    serve(parser.parse_args())

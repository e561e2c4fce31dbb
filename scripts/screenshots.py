#!/usr/bin/env python3
"""The README's pictures of the page: docs/page.png and docs/page-phone.png.

Starts `vstream serve`, watches the sample in the system's Chromium as a visitor would, and asks.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent.parent / "docs"
MAX_BYTES = 250_000
COLOURS = 256
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
SHOTS = {
    "page.png": ({"width": 1280, "height": 800}, "light", ((6, "What drink is shown?"), (37, "Was there a cat?"))),
    "page-phone.png": ({"width": 375, "height": 760}, "dark", ((14, "What animal is shown?"),)),
}
"""Window, colours, and what is asked at which stream time; the picture is taken while the last is being answered."""


def main() -> None:
    """Makes both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="of the model")
    arguments = parser.parse_args()
    DOCS.mkdir(exist_ok=True)
    with server(arguments.threads) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        for name, (window, colours, questions) in SHOTS.items():
            page = browser.new_page(viewport=window, color_scheme=colours)
            watch_and_ask(page, address, questions)
            (DOCS / name).write_bytes(small_png(page.screenshot()))
            print(f"{DOCS / name}: {(DOCS / name).stat().st_size} bytes")
            page.evaluate("fetch(`/v1/streams/${new URL(location).searchParams.get('stream')}`, {method: 'DELETE'})")
            page.close()
        browser.close()


@contextmanager
def server(threads: int) -> Iterator[str]:
    """The server's address, while it runs."""
    command = [sys.executable, "-c", "import sys; from vstream.app.cli import main; sys.exit(main())", "serve"]
    with tempfile.TemporaryDirectory() as memories:
        command += ["--port", "0", "--memories", memories, "--threads", str(threads), "--stop-seconds", "1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                yield next(found[1] for line in process.stderr if (found := re.search(r"vstream serves (\S+)", line)))
            finally:
                process.terminate()


def watch_and_ask(page: Any, address: str, questions: tuple[tuple[int, str], ...]) -> None:
    """Returns when the last answer has its evidence, and its pictures are there."""
    page.goto(address, wait_until="domcontentloaded")
    page.click("text=Watch the sample")
    page.wait_for_selector("#watch .asks")
    began = time.monotonic()
    for seconds, question in questions:
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        page.fill("#question", question)
        page.keyboard.press("Enter")
    page.wait_for_selector(f".turn:nth-child({len(questions)}) .evidence img", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.evidence img')].every(image => image.complete)")
    page.wait_for_function("document.getElementById('live').naturalWidth > 0")
    page.evaluate("document.activeElement.blur()")


def small_png(png: bytes) -> bytes:
    """A PNG of few colours.

    Raises:
        ValueError: if even so it is larger than `MAX_BYTES`.
    """
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    if len(buffer.getvalue()) > MAX_BYTES:
        raise ValueError(f"the picture has {len(buffer.getvalue())} bytes, at most {MAX_BYTES} are wanted")
    return buffer.getvalue()


if __name__ == "__main__":
    main()

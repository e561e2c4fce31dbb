"""Answers for programs: lines of JSON, and evidence pictures as files.

This module knows nothing of models or memory.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstream.app.alerts.notices import iso, notice_record
from vstream.app.lines import LineScreen

if TYPE_CHECKING:
    from vstream.answer import Answer, Evidence
    from vstream.app.alerts.delivery import Delivered
    from vstream.app.desk import Asked, Watched


class PictureFolder:
    """Where evidence pictures are written; with no folder, they are not.

    A picture's name comes from the source, the time and the bytes, so the same picture is written once, and another
    run never replaces what an earlier answer points to.
    """

    def __init__(self, folder: Path | None) -> None:
        """Makes the folder.

        Raises:
            ValueError: if a folder of that name cannot be made.
        """
        self._folder = folder
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"{folder} is a file; --evidence-dir needs a folder")
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, evidence: Evidence, source_name: str | None) -> str | None:
        """Writes the picture of a piece of evidence of a source; its path, None if there is none."""
        if not evidence.picture:
            return None
        assert evidence.picture_seconds is not None, f"{evidence} has a picture of no time"
        return self.save_picture(evidence.picture, evidence.picture_seconds, source_name)

    def save_picture(self, picture: bytes, seconds: float, source_name: str | None) -> str | None:
        """Writes a JPEG of a time of a source; its path, None if there is no picture or no folder."""
        if self._folder is None or not picture:
            return None
        stem = re.sub(r"[^\w.-]+", "_", Path(source_name or "frame").stem)
        name = f"{stem}-{seconds:08.2f}s-{zlib.crc32(picture):08x}.jpg"
        path = self._folder / name
        if not path.exists():
            part = path.with_name(f".{name}.part")
            part.write_bytes(picture)
            part.replace(path)  # a picture is there whole or not at all
        return str(path)


def answer_record(answer: Answer, pictures: PictureFolder, source_name: str | None) -> dict[str, Any]:
    """A finished answer as JSON values; no number is NaN or infinite."""
    ttft_seconds = answer.ttft_seconds
    return {
        "source": source_name,
        "question": answer.question,
        "answer": answer.text(),
        "choice": answer.choice,
        "earlier_turns": answer.num_earlier,
        "turns_left_out": answer.num_left_out,
        "asked_at_seconds": answer.asked_at_seconds,
        "snapshot_seconds": answer.snapshot_seconds,
        "evidence": [_evidence_record(one, pictures.save(one, source_name)) for one in answer.evidence],
        "ttft_ms": None if ttft_seconds is None else round(ttft_seconds * 1000, 3),
        "tokens_per_second": _finite(answer.tokens_per_second),
        "memory": asdict(answer.memory) if answer.memory else None,
        "frames": asdict(answer.frames) if answer.frames else None,
        "vision_tokens": asdict(answer.vision) if answer.vision else None,
    }


def _evidence_record(evidence: Evidence, image: str | None) -> dict[str, Any]:
    return {
        "start_seconds": evidence.start_seconds,
        "end_seconds": evidence.end_seconds,
        "wall_clock": None if evidence.wall_clock is None else iso(evidence.wall_clock),
        "score": _finite(evidence.score),
        "level": evidence.level,
        "image": image,
    }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def print_json(record: dict[str, Any]) -> None:
    """One line on stdout, sent at once."""
    sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
    sys.stdout.flush()


class JsonScreen(LineScreen):
    """Shows every answer as one line of JSON on stdout, when it is over, and events between them."""

    def show(self, asked: Asked) -> None:
        """Waits for an answer and prints it."""
        asked.answer.wait()
        if asked.answer.error is None:
            print_json(answer_record(asked.answer, self.pictures, asked.watched.name))

    def show_event(self, event: Delivered) -> None:
        """Prints that an event has begun or is over."""
        print_json(notice_record(event.notice, event.image))

    def close(self, watched: Sequence[Watched], answers: Sequence[Answer], wall_seconds: float) -> None:
        """Every line says all there is."""
        self.stop()

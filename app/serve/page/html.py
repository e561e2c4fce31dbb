"""Small helpers for HTML made on the server. Knows nothing of streams or of Gradio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

STATIC = Path(__file__).parent / "static"


@cache
def static(name: str) -> str:
    """A file of the page, as text."""
    return (STATIC / name).read_text(encoding="utf-8")


def filled(name: str, **values: str) -> str:
    """A file of the page with HTML in its {{places}}; each value has one."""
    text = static(name)
    for place, value in values.items():
        assert f"{{{{{place}}}}}" in text, f"{name} has no place for {place}"
        text = text.replace(f"{{{{{place}}}}}", value)
    return text


def data(values: Mapping[str, object]) -> str:
    """Attributes `data-name="value"`, escaped; None and "" are left out."""
    return "".join(f' data-{name}="{escape(str(value))}"' for name, value in values.items() if value not in (None, ""))


def options(names: Sequence[str], labels: Mapping[str, str], about: Callable[[str], str]) -> str:
    """`<option>` elements, the first one chosen; page.js shows what the chosen one is about."""
    return "".join(
        f'<option value="{escape(name)}"{data({"about": about(name)})}>{escape(labels.get(name, name))}</option>'
        for name in names
    )


def button(text: str, do: str, *, kind: str = "", **values: object) -> str:
    """A button that page.js carries to `do`, with values for it."""
    return f'<button type="button" class="button {kind}"{data({"do": do, **values})}>{escape(text)}</button>'


def notice(text: str, *, trouble: bool = True, **values: object) -> str:
    """One sentence for a person, "" for none, and values for page.js. Screen readers say it."""
    kind = ' class="trouble"' if trouble else ""
    return f'<div class="notice" role="alert"{data(values)}>{f"<p{kind}>{escape(text)}</p>" if text else ""}</div>'


def size(num_bytes: float) -> str:
    """Bytes for people: '12.3 MiB'."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"

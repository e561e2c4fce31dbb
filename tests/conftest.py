"""What several test files share: the installed model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vstream.models import load_adapter
from vstream.models.embedded import fetch
from vstream.models.embedded.adapter import EmbeddedAdapter


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """Where the embedded model is installed. Where it is missing, tests fail on CI and are skipped elsewhere."""
    folder = fetch.embedded_dir()
    if not folder.is_dir():
        reason = "the embedded model is not installed; run `vstream models add embedded`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="module")
def embedded_model(embedded_folder: Path) -> EmbeddedAdapter:
    """The installed model."""
    adapter = load_adapter("embedded", device="cpu")
    assert isinstance(adapter, EmbeddedAdapter)
    return adapter

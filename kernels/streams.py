"""Work beside the work: a stream of its own for copies, and events to wait for; without CUDA all is done at once.

The same code runs either way: on a CPU a `Side` is no stream, what is done on it is done when it returns, and there is
nothing to wait for. This module knows nothing of what is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


class Ready:
    """That some work is done: nothing to wait for where it was done at once."""

    def __init__(self, event: torch.cuda.Event | None = None) -> None:
        self._event = event

    def wait(self) -> None:
        """What is queued on the current stream from now on comes after that work; the host does not wait."""
        if self._event is not None:
            self._event.wait()

    def settle(self) -> None:
        """The host waits until the work is done."""
        if self._event is not None:
            self._event.synchronize()


DONE = Ready()
"""Nothing to wait for."""


class Side:
    """A stream beside the one that computes, for one direction of copies."""

    def __init__(self, device: torch.device) -> None:
        """A stream of its own on a CUDA device, none elsewhere."""
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def beside(self, *used: Tensor) -> Iterator[None]:
        """Work inside is queued here, behind all that was queued so far where it is entered.

        Args:
            used: tensors made elsewhere that it reads or writes; their memory is not given to others before it is done.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield
        for tensor in used:
            if tensor.is_cuda:
                tensor.record_stream(self._stream)


def queued(device: torch.device) -> Ready:
    """When all that the current stream has been given so far is done."""
    if device.type != "cuda":
        return DONE
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return Ready(event)


@cache
def arrivals(device: torch.device) -> Side:
    """The one on which blocks come to a device."""
    return Side(device)


@cache
def departures(device: torch.device) -> Side:
    """The one on which blocks leave a device."""
    return Side(device)

"""MemoryReader: a memory folder that is asked, while another process may be writing it or nobody is.

It writes nothing. This module knows nothing of sources, threads or answers' texts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstream.memory.reader import BlockGoneError, ReadStore
from vstream.remembered import Remembered

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.config import Config
    from vstream.models.base import Adapter
    from vstream.view import View


class MemoryReader(Remembered):
    """What is committed in a memory folder, as of the last `refresh`. Its own dialogue lasts as long as it does."""

    store: ReadStore

    def __init__(self, adapter: Adapter, config: Config, folder: Path) -> None:
        """Opens it.

        Raises:
            ValueError: if the folder is no memory of this model.
        """
        super().__init__(adapter, config)
        self._folder = folder
        self._moved: Counter[str] = Counter()
        self.store = ReadStore(
            folder,
            self._shape,
            device=adapter.device,
            device_bytes=self._device_bytes(1),
            host_bytes=config.host_bytes,
            identity=self._identity,
            max_block_tokens=self._max_block_tokens,
            max_state_bytes=self._max_state_bytes,
        )
        try:
            self.cache = self._make_cache()
            self._take_state()
        except BaseException:
            self.store.close()
            raise

    @property
    def moved(self) -> Counter[str]:
        """How many blocks were demoted and merged, by the last commit seen."""
        return self._moved

    def view(self, until_seconds: float) -> View:
        """As in `Remembered`; of a later commit where blocks that it must read have left meanwhile."""
        while True:
            try:
                return super().view(until_seconds)
            except BlockGoneError:
                self.refresh()

    def refresh(self) -> None:
        """Takes what has been committed since, if anything was."""
        if self.store.refresh():
            self._take_state()

    def add_turns(self, answers: Sequence[Answer]) -> None:
        """Takes finished answers into this reader's own dialogue."""
        self._remember_turns(answers)

    def _take_state(self) -> None:
        """Sink and window as of a commit; of a later one where blocks of the window have left meanwhile."""
        while True:
            state = self._state()
            try:
                self._restore({**state, "dialogue": [*self.dialogue] or state["dialogue"]})
            except BlockGoneError:
                self.store.refresh()
                continue
            self._moved = Counter(state["moved"])
            return

    def _state(self) -> dict[str, Any]:
        if self.store.state is None:
            raise ValueError(f"the memory in {self._folder} holds nothing yet; ask again when a clip was watched")
        found: dict[str, Any] = json.loads(self.store.state)
        return found

"""Judgments of a run, kept on disk beside its answers: FILE.judged.jsonl beside FILE.jsonl, a line for each prompt.

A line is found again by its judge and its prompt, not by its place. So a run that was killed goes on, answers that came
later are judged alone, and another judge or another opponent may be tried and left again: nothing is asked twice, and
no judgment is mixed with those of another judge, which is a model's name and its host. This module knows nothing of
what prompts are about.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from vstream.app.batch.ledger import Ledger, Record
from vstream.app.bench.judge import Judge, JudgeError
from vstream.app.progress import Progress

GIVE_UP_AFTER = 20
"""So many failures one behind the other, and the judge is taken to be gone."""
KEY_BITS = 52

Reply = str | JudgeError


class Judging:
    """Asks a judge whatever has no judgment yet.

    Attributes:
        judge: who is asked.
        path: of the judgments.
        replies: by prompt, as far as there are any.
        errors: how many prompts have an error instead.
    """

    def __init__(self, judge: Judge, answers: Path, at_once: int) -> None:
        """Nothing is asked, or opened, before it is called.

        Args:
            judge: who is asked.
            answers: where the run's answers are.
            at_once: requests under way together.
        """
        self.judge, self._at_once = judge, at_once
        self.path = answers.with_name(f"{answers.stem}.judged.jsonl")
        self.replies: dict[str, str] = {}
        self.errors, self._failure = 0, ""

    def __call__(self, prompts: Mapping[str, str], progress: Progress, *, overwrite: bool, retry: bool) -> None:
        """Asks.

        Args:
            prompts: with the id of the item that each is about.
            progress: where it is shown how far this is.
            overwrite: judgments that are there are lost.
            retry: prompts that ended in an error are asked again.

        Raises:
            ValueError: if the file will not do.
            JudgeError: if the judge cannot be asked at all, or is gone; what was judged is kept.
            OSError: if a line cannot be written.
        """
        if not prompts:
            return
        with Ledger(self.path, overwrite=overwrite, retry=retry) as ledger:
            ledger.agree(kind="judgments")
            keys = {prompt: self._key(prompt) for prompt in prompts}
            left = [prompt for prompt in prompts if keys[prompt] not in ledger.done]
            try:
                with closing(replies(self.judge, left, self._at_once)) as coming:
                    self._write(coming, prompts, ledger, lambda number: progress.count("judgments", number, len(left)))
            finally:
                self._collect(ledger, keys)
        if self.errors:
            progress.tell(f"{self.errors:,} judgments failed, one so: {self._failure}; --retry asks them again")

    def as_json(self) -> dict[str, Any]:
        """Who judged, and how much, as JSON values."""
        return {
            "model": self.judge.model, "host": self.judge.host, "judgments": len(self.replies), "errors": self.errors,
        }  # fmt: skip

    def _write(
        self, coming: Iterable[tuple[str, Reply]], items: Mapping[str, str], ledger: Ledger, told: Callable[[int], None]
    ) -> None:
        """A line for each reply; raises `JudgeError` when only errors come."""
        failed = 0
        for number, (prompt, reply) in enumerate(coming, start=1):
            ledger.write([self._record(prompt, items[prompt], reply)])
            told(number)
            failed = failed + 1 if isinstance(reply, JudgeError) else 0
            if failed == GIVE_UP_AFTER:
                raise JudgeError(
                    f"the judge failed {failed} times running, at last so: {reply}; --retry goes on", hopeless=True
                )

    def _record(self, prompt: str, item: str, reply: Reply) -> Record:
        what = {"error": str(reply)} if isinstance(reply, JudgeError) else {"reply": reply}
        return {"row": self._key(prompt), "item": item, "judge": self.judge.model, "host": self.judge.host, **what}

    def _collect(self, ledger: Ledger, keys: Mapping[str, int]) -> None:
        """What the file holds of these prompts."""
        found = {record["row"]: record for record in ledger.records()}
        records = {prompt: found[key] for prompt, key in keys.items() if key in found}
        self.replies = {prompt: record["reply"] for prompt, record in records.items() if "reply" in record}
        failures = [record["error"] for record in records.values() if "error" in record]
        self.errors, self._failure = len(failures), failures[0] if failures else ""

    def _key(self, prompt: str) -> int:
        """What stands for a prompt to this judge."""
        text = "\0".join((self.judge.host, self.judge.model, prompt))
        return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]) >> (64 - KEY_BITS)


def replies(judge: Judge, prompts: Sequence[str], at_once: int) -> Generator[tuple[str, Reply]]:
    """Prompts with their replies or errors, as they come; the first is asked alone.

    Raises:
        JudgeError: if the first shows that the others would fare no better.
    """
    waiting, done = deque(prompts), SimpleQueue[tuple[str, Reply | Exception]]()
    try:
        for number in range(len(prompts)):
            if number == 1:
                for _ in range(min(at_once, len(waiting))):
                    Thread(target=_work, args=(judge, waiting, done), daemon=True).start()
            prompt, reply = done.get() if number else _asked(judge, waiting.popleft())
            if isinstance(reply, JudgeError) and reply.hopeless and not number:
                raise reply
            if isinstance(reply, Exception) and not isinstance(reply, JudgeError):
                raise reply  # a mistake in here
            yield prompt, reply
    finally:
        waiting.clear()  # whoever went away wants no more


def _work(judge: Judge, waiting: deque[str], done: SimpleQueue[tuple[str, Reply | Exception]]) -> None:
    """Asks until nothing waits."""
    while True:
        try:
            prompt = waiting.popleft()
        except IndexError:
            return
        done.put(_asked(judge, prompt))


def _asked(judge: Judge, prompt: str) -> tuple[str, Reply | Exception]:
    """A prompt and its reply, or whatever kept it from coming."""
    try:
        return prompt, judge.ask(prompt)
    except Exception as error:  # it is raised where somebody waits
        return prompt, error

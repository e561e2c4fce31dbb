"""EgoSchema (Mangalam et al., 2023, arXiv 2308.09126): multiple choice about three minutes of a wearer's day.

The project publishes 5,031 questions, and the answers to 500 of them; those alone are asked. Its own score compares
whole numbers from 0 to 4 by `q_uid`, and nothing in it makes a number of words. The official mark is therefore that of
Flash-VStream's script, `eval_any_dataset.py`: the first capital from A to E in any word ("Answer: D" is A), and where
there is none a guess, which is right in one of five. What ended in an error it leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vstream.app.bench.base import Ask, ChoiceBenchmark, Item
from vstream.app.bench.entries import Entry, read_entries
from vstream.app.bench.flash_form import gold_letter, question_and_options
from vstream.app.progress import Progress

QUESTIONS, ANSWERS = "questions.json", "subset_answers.json"
FLASH = "EgoSchema/test_qa.json"
LETTERS = "ABCDE"


class EgoSchema(ChoiceBenchmark):
    """The subset of 500 videos, a question each."""

    name = "egoschema"
    about = "EgoSchema: multiple choice about 3 minutes seen by a wearer, the 500 with answers (arXiv 2308.09126)"
    needs = f"{QUESTIONS} and {ANSWERS}, or {FLASH}; videos named by q_uid"

    def items(self) -> Iterator[Item]:
        """Asked at the end of the video; what has no published answer is left out, and told on stderr."""
        return self._flash() if self.disk.first(QUESTIONS, FLASH) == FLASH else self._published()

    def official(self, item: Item, said: str | None) -> float | None:
        """By the first capital; the chance of a guess where there is none."""
        if said is None:
            return None
        letter = first_letter(said)
        return 1 / len(LETTERS) if letter is None else float(letter == item.gold)

    def _published(self) -> Iterator[Item]:
        answers = Entry(ANSWERS, self.disk.read(ANSWERS))
        questions = {one.text("q_uid"): one for one in read_entries(self.disk, QUESTIONS)}
        unknown = sorted(set(answers.fields) - set(questions))
        if unknown:
            raise answers.wrong(
                f"{len(unknown):,} of its answers are to no question of {QUESTIONS}, first {unknown[0]}"
            )
        without = len(questions) - len(answers.fields)
        if without:
            Progress().tell(f"{without:,} of {len(questions):,} questions have no published answer and are left out")
        for name, question in questions.items():
            if name in answers:
                options = tuple(question.text(f"option {number}") for number in range(len(LETTERS)))
                gold = gold_letter(Entry(f"{ANSWERS}, {name}", {"answer": answers[name]}), options)
                yield _item(name, question.text("question"), options, gold)

    def _flash(self) -> Iterator[Item]:
        for entry in read_entries(self.disk, FLASH):
            question, options = question_and_options(entry)
            yield _item(entry.text("video_id"), question, options, gold_letter(entry, options))


def first_letter(said: str) -> str | None:
    """The letter that Flash-VStream's script finds."""
    found = re.search(f"[{LETTERS}]", said)
    return found[0] if found else None


def _item(name: str, question: str, options: tuple[str, ...], gold: str) -> Item:
    """A question; the video is called as it is."""
    return Item(name, name, (), (Ask(question, "end", options),), gold)

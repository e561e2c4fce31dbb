"""Examples for `tiny`: streams of the synthetic world as tokens, presented as the engine presents them, with questions.

A presentation is blocks of frames from anywhere in a stream, in time order, then the recent window. Frames are symbols
here (what is to be seen in each quarter, with weights); `train_tiny.py` puts words' embeddings or pictures in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_model import ANSWER, ASK, BOS, EOS, NUM_PLACES, SIDE
from tiny_net import NOTES, Batch
from torch import Tensor
from torch.nn import functional as F

from vstream.app.lab.exam import FOR_NEEDLES, NOTHING, TEMPLATES, Examiner, Past, Question, clock
from vstream.app.lab.render import draw
from vstream.app.lab.world import COLOURS, DIRECTIONS, KINDS, Shown, Sighting, World, plant

BLOCK = 4  # frames that memory stores and brings back together
PARTS = 7  # of a quarter: colour, texture and kind of two things, and nothing
HARD = (
    *("before", "how many") * 9, *("after", "direction", "change", "order") * 5, *("earlier", "when", "at") * 3,
    *("where", "which", "texture") * 2, "colour", "first",
)  # fmt: skip
"""Asked more often than others: hard, or seldom possible."""
HARD_OF_NEEDLES = (*("when",) * 10, *("order", "earlier") * 6, *("change", "at") * 3, "direction")
FARTHEST = 3400  # positions between sink and stream
CHOICES_SHARE = 0.04
LAST_START = 24 * 3600 - 4800
NEEDLE_SECONDS = 3, 6
FADED_SHARE = 0.6  # of streams with gaps
OWN_SINKS = 0.97  # of the pieces between gaps; fewer, and how far they are from the sink tells which came first


@dataclass
class Stream:
    """What is presented, and what is asked about it.

    Attributes:
        seconds: times of the T frames shown, rising.
        asked: questions with their answers.
        faded: whether memory has condensed what lies before the recent window.
    """

    world: World
    seconds: list[int]
    asked: list[Question] = field(default_factory=list)
    faded: bool = False

    @property
    def blocks(self) -> list[list[int]]:
        """Numbers of the frames of every block before the recent window."""
        recent = len(self.seconds) - 1
        while recent and self.seconds[recent - 1] == self.seconds[recent] - 1:
            recent -= 1
        grouped: dict[int, list[int]] = {}
        for number, second in enumerate(self.seconds[:recent]):
            grouped.setdefault(second // BLOCK, []).append(number)
        return list(grouped.values())


def plain_stream(rng: random.Random, num_frames: int, count: int, dense: float = 0.3) -> Stream:
    """Everything of a short stream; `dense` is the chance that something new comes every second or two."""
    start = rng.choice([0, rng.randrange(LAST_START)])
    scene_seconds = (1, rng.choice([1, 2])) if rng.random() < dense else (rng.choice([1, 2, 2, 3]), 7)
    world = World(rng.getrandbits(40), start + num_frames, start_seconds=start, scene_seconds=scene_seconds)
    types = (*TEMPLATES, *HARD)
    examiner, now = Examiner(world), start + num_frames - 1
    asked = examiner.ask(now, count, types=types, choices=CHOICES_SHARE) + _changes(examiner, now)
    asked = [one for one in asked if one.type != "how many" or one.answer != "one" or rng.random() < 0.4]
    return Stream(world, list(range(start, start + num_frames)), asked)


def gapped_stream(rng: random.Random, num_frames: int, count: int) -> Stream:
    """Blocks from anywhere in minutes or an hour of stream, needles among them, and the recent window."""
    length = BLOCK * rng.randint(2 * num_frames, rng.choice([120, 900]) + num_frames)
    start = rng.randrange(LAST_START) // BLOCK * BLOCK
    window = BLOCK * max(1, int(num_frames * rng.uniform(0.2, 0.65)) // BLOCK)
    num_blocks = max(2, (num_frames - window) // BLOCK)
    num_needles = rng.randint(1, max(2, num_blocks // 2))
    places = sorted(rng.sample(range(1, (length - window) // BLOCK // 3 - 1), num_needles))
    times = [start + 3 * BLOCK * place + rng.randrange(BLOCK) for place in places]
    needles = plant(rng.getrandbits(40), times, seconds=rng.randint(*NEEDLE_SECONDS), kinds=_some_kinds(rng))
    world = World(rng.getrandbits(40), start + length, start_seconds=start, needles=needles)
    blocks = {
        second // BLOCK
        for needle in needles
        for second in range(needle.start_seconds - rng.randrange(2), needle.end_seconds + rng.randrange(2))
    }
    others = range(start // BLOCK, (start + length - window) // BLOCK)
    blocks |= set(rng.sample(others, max(0, num_blocks - len(blocks))))
    seconds = sorted({BLOCK * block + second for block in blocks for second in range(BLOCK)})
    seconds += [second for second in range(start + length - window, start + length) if second not in seconds]
    examiner, now = Examiner(world), start + length - 1
    asked = examiner.ask(now, count - 3, types=(*FOR_NEEDLES, *HARD_OF_NEEDLES), about=needles, choices=CHOICES_SHARE)
    asked += examiner.ask(now, 3, types=("now", "count", "digit"), about=_recent(world, now, window))
    return Stream(world, seconds, asked, faded=rng.random() < FADED_SHARE)


def kept_of(stream: Stream, text: int, rng: random.Random) -> dict[int, list[int]]:
    """Which quarters of which frames are left of the blocks before the recent window, by frame, as memory condenses.

    Of some blocks everything, of most as many tokens as a digest has or as a gist has of four seconds: those that show
    something, rather where it enters, `text` tokens of time with each frame's first.
    """
    kept: dict[int, list[int]] = {}
    for block in stream.blocks:
        gains = {
            (frame, place): rng.uniform(0.5, 1.0) * (0.2 + weight)
            for frame in block
            for place, weight in enumerate(_filled(stream.world, stream.seconds[frame]))
        }
        whole = len(block) * (text + NUM_PLACES)
        budget = rng.choice([whole] + [whole * 5 // 12] * 4 + [whole // 3] + [rng.randint(3, 6) for _ in range(4)])
        _digest(kept, gains, max(budget, 1 + text), text)
    return kept


def _digest(kept: dict[int, list[int]], gains: dict[tuple[int, int], float], budget: int, text: int) -> None:
    """Takes the quarters of most gain for their price, a frame's first paying for its time, at least one."""

    def price(one: tuple[int, int]) -> int:
        return 1 if one[0] in kept else 1 + text

    while gains:
        best = max(gains, key=lambda one: gains[one] / price(one))
        gain = gains.pop(best)
        if price(best) <= budget and gain > 0:
            budget -= price(best)
            kept.setdefault(best[0], []).append(best[1])


def _filled(world: World, second: int) -> list[float]:
    """How much of each quarter shows something, 1 at most; half as much again of what enters."""
    filled = [0.0] * NUM_PLACES
    for one in world.scene_at(second).sightings:
        shown = one.at(second)
        for place, weight in enumerate(weights_of(shown) if shown is not None else ()):
            filled[place] = max(filled[place], min(1.0, weight) * (1.5 if one.start_seconds == second else 1.0))
    return filled


def _changes(examiner: Examiner, now: int) -> list[Question]:
    """Questions about what changed its colour, which few things do."""
    past = Past(examiner.world, now)
    turned = [one for one in past.seen if past.turned(one)]
    return examiner.ask(now, 2, types=("change",), about=turned) if turned else []


def _some_kinds(rng: random.Random) -> list[str]:
    return rng.sample(KINDS, 16)


def _recent(world: World, now: int, window: int) -> list[Any]:
    return [one for one in Past(world, now).seen if one.start_seconds > now - window]


def weights_of(shown: Shown) -> list[float]:
    """How much of a thing lies in each quarter; about one in all."""
    left = min(1.0, max(0.0, 0.5 + (0.5 - shown.x) / shown.size))
    top = min(1.0, max(0.0, 0.5 + (0.5 - shown.y) / shown.size))
    return [left * top, (1 - left) * top, left * (1 - top), (1 - left) * (1 - top)]


def notes_of(stream: Stream) -> Tensor:
    """`NOTES` of what is mostly in each quarter, [T, 4, len(NOTES)], -100 for what cannot be known."""
    notes = torch.full((len(stream.seconds), NUM_PLACES, len(NOTES)), -100)
    shown, seen = set(stream.seconds), list(stream.world.sightings())
    order = {one: number for number, one in enumerate(seen)}
    for frame, second in enumerate(stream.seconds):
        for one in stream.world.scene_at(second).sightings:
            at = one.at(second)
            if at is not None and one.start_seconds in shown:
                values = torch.tensor(_note(one, second, seen, order[one], shown))
                for place, weight in enumerate(weights_of(at)):
                    if weight > 0.45:
                        notes[frame, place] = values
    return notes


def _note(one: Sighting, second: int, seen: list[Sighting], index: int, shown: set[int]) -> list[int]:
    start = one.start_seconds
    moved = one.direction is not None and second - start >= (one.end_seconds - 1 - start) / 2
    way = 1 + DIRECTIONS.index(one.direction) if moved and one.direction else 0
    whole = all(before in shown for before in range(seen[0].start_seconds, start))
    times = sum(other.thing.kind == one.thing.kind for other in seen[: index + 1]) if whole else 0
    return [
        int(second == start), COLOURS.index(one.thing.colour), one.place,
        start % 60, start // 60 % 10, start // 600 % 10, way,
        min(times, 4) - 1 if whole else -100,
        *(_previous(seen, index, shown) if second == start else (-100, -100)),
    ]  # fmt: skip


def _previous(seen: list[Sighting], index: int, shown: set[int]) -> tuple[int, int]:
    """Colour and kind of what entered before; -100 where that was not shown, or two entered at once."""
    start = seen[index].start_seconds
    if index == 0:
        return len(COLOURS), len(KINDS)
    before = seen[index - 1]
    twice = index > 1 and seen[index - 2].start_seconds == before.start_seconds
    if before.start_seconds == start or twice or any(at not in shown for at in range(before.start_seconds, start)):
        return -100, -100
    return COLOURS.index(before.thing.colour), KINDS.index(before.thing.kind)


# Pictures -------------------------------------------------------------------------------------------------------------


def pictures_of(streams: Sequence[Stream], rng: random.Random) -> Tensor:
    """All frames of some streams as the adapter prepares them, [T, 3, 48, 48]."""
    return torch.stack([picture(stream.world, second, rng) for stream in streams for second in stream.seconds])


def picture(world: World, second: float, rng: random.Random) -> Tensor:
    """One frame, drawn at one of several sizes and brought to the model's."""
    drawn = torch.from_numpy(draw(world, second, side=rng.choice([48, 48, 64, 96]))).permute(2, 0, 1)[None].float()
    small = F.interpolate(drawn, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
    return small[0] / 127.5 - 1


def random_frames(rng: random.Random, count: int) -> Iterator[Stream]:
    """Single moments of many worlds."""
    for _ in range(count):
        yield Stream(World(rng.getrandbits(40), 60, crowd=0.5), [rng.randrange(60)])


# Tokens ---------------------------------------------------------------------------------------------------------------


class Collator:
    """Puts streams into one padded batch, laid out as the adapter and the engine lay them out."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {}
        special = tokenizer.convert_tokens_to_ids
        self.bos, self.eos, self.ask, self.answer = (special(one) for one in (BOS, EOS, ASK, ANSWER))
        self.nothing = special(NOTHING)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, in a sentence's first word the plain form."""
        if text not in self._words:
            if len(self._words) > 200_000:
                self._words.clear()
            self._words[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._words[text]

    def symbols(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """(word ids, weights) of every quarter, each [T, 4, PARTS]."""
        ids = torch.zeros(len(stream.seconds), NUM_PLACES, PARTS, dtype=torch.long)
        weights = torch.zeros(len(stream.seconds), NUM_PLACES, PARTS)
        for frame, second in enumerate(stream.seconds):
            left = [1.0] * NUM_PLACES
            for number, shown in enumerate(stream.world.at(second)[:2]):
                words = [self.ids(word)[0] for word in shown.thing]
                for place, weight in enumerate(weights_of(shown)):
                    if weight > 0:
                        ids[frame, place, 3 * number : 3 * number + 3] = torch.tensor(words)
                        weights[frame, place, 3 * number : 3 * number + 3] = weight
                        left[place] = max(0.0, left[place] - weight)
            ids[frame, :, 6] = self.nothing
            weights[frame, :, 6] = torch.tensor(left)
        return ids, weights

    def batch(self, streams: Sequence[Stream], rng: random.Random, *, jumps: bool) -> Batch:
        """A batch of S streams: ids, positions and targets [S, N], mask [S, 1, N, N], what is seen, notes [T, 4, ...].

        Token id -1 stands for a quarter of a frame, -2 for the newline before a question; targets are -100 but on
        answers.
        """
        rows = [self.row(stream, rng, jumps=jumps) for stream in streams]
        n = max(len(row[0]) for row in rows)
        ids = torch.full((len(rows), n), 0)
        targets, positions = torch.full((len(rows), n), -100), torch.zeros(len(rows), n, dtype=torch.long)
        mask = torch.zeros(len(rows), 1, n, n, dtype=torch.bool)
        mask[:, 0, range(n), range(n)] = True
        for number, (row_ids, row_targets, row_positions, row_mask) in enumerate(rows):
            m = len(row_ids)
            ids[number, :m], targets[number, :m] = torch.tensor(row_ids), torch.tensor(row_targets)
            positions[number, :m], mask[number, 0, :m, :m] = torch.tensor(row_positions), row_mask
        symbols = [self.symbols(stream) for stream in streams]
        return {
            "ids": ids, "targets": targets, "positions": positions, "mask": mask,
            "symbols": torch.cat([one for one, _ in symbols]), "weights": torch.cat([one for _, one in symbols]),
            "notes": torch.cat([notes_of(stream) for stream in streams]),
        }  # fmt: skip

    def row(self, stream: Stream, rng: random.Random, *, jumps: bool) -> tuple[list[int], list[int], list[int], Tensor]:
        """Ids, targets and positions [N] of one stream, and who sees whom [N, N]; `jumps`: positions have gaps."""
        ids, positions, frame_of, sinks, starts = [self.bos], [0], [-1], list[int](), list[int]()
        at = 1 + (rng.randrange(FARTHEST) if jumps and rng.random() < 0.5 else 0)
        for number, second in enumerate(stream.seconds):
            if jumps and second % BLOCK == 0 and rng.random() < 0.2:
                at += rng.randrange(120)
            if jumps and number and second > stream.seconds[number - 1] + 1 and rng.random() < OWN_SINKS:
                sinks.append(len(ids))
                ids.append(self.bos)
                positions.append(at - 1 - rng.randrange(FARTHEST))
                frame_of.append(number)
            tokens = [*self.ids(clock(second)), *[-1] * NUM_PLACES]
            starts.append(len(ids))
            ids += tokens
            positions += range(at, at + len(tokens))
            frame_of += [number] * len(tokens)
            at += len(tokens)
        targets, length, ends = [-100] * len(ids), len(ids), []
        for one in stream.asked:
            words, answer = self.ids(one.text), self.ids(one.answer)
            tokens = [-2, self.ask, *words, self.answer, *answer, self.eos]
            ids += tokens
            positions += range(at, at + len(tokens))
            targets += [-100] * (2 + len(words)) + [*answer, self.eos, -100]
            ends.append(len(ids))
        mask = self._mask(length, frame_of, ends, rng, len(stream.seconds))
        own_sinks(mask, sinks, length, rng)
        if stream.faded:
            mask[length:, self._gone(stream, starts, rng)] = False
        return ids, targets, positions, mask

    def _gone(self, stream: Stream, starts: Sequence[int], rng: random.Random) -> list[int]:
        """Numbers of the tokens that memory no longer has; frames start at `starts`."""
        text = len(self.ids(clock(0)))
        kept, gone = kept_of(stream, text, rng), list[int]()
        for frame in (frame for block in stream.blocks for frame in block):
            places = kept.get(frame, [])
            gone += [starts[frame] + text + place for place in range(NUM_PLACES) if place not in places]
            gone += [] if places else range(starts[frame], starts[frame] + text)
        return gone

    def _mask(self, length: int, frame_of: list[int], ends: list[int], rng: random.Random, num_frames: int) -> Tensor:
        """Who sees whom: frames what came before (or only so far back), questions all frames and themselves."""
        n = ends[-1] if ends else length
        mask = torch.zeros(n, n, dtype=torch.bool)
        mask[:length, :length] = torch.ones(length, length, dtype=torch.bool).tril()
        if rng.random() < 0.4:
            back, frames = rng.randint(4, max(4, num_frames)), torch.tensor(frame_of)
            near = (frames[:, None] - frames[None, :] < back) | (frames[None, :] < 0)
            mask[:length, :length] &= near
        start = length
        for end in ends:
            mask[start:end, :length] = True
            mask[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            start = end
        return mask


def own_sinks(mask: Tensor, sinks: Sequence[int], length: int, rng: random.Random) -> None:
    """Frames behind a sink of their own see that one alone, as where it stood when they were encoded; and nearly
    always nothing else of before. No question sees it.

    Memory brings back blocks from before a rebase, so how far a block is from the sink must not tell when it was.
    """
    for first, last in zip(sinks, [*sinks[1:], length], strict=False):
        mask[:, first] = False
        mask[first:last, first] = True
        mask[first:last, 0] = mask[first, :first] = False
        if rng.random() < 0.9:
            mask[first:last, :first] = False

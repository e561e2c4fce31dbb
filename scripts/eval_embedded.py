#!/usr/bin/env python3
"""Scores the shipped models through the engine, with their default settings; the last line is JSON.

The embedded model on held-out natural videos: right answers by type of question, with 95% intervals from a bootstrap
over videos; the same for the same questions on another video, for the questions alone, and (on a few videos) for the
language model as it was before training; and a dozen plain chat questions before and after training. The pictures are
fetched once (`natural_set`). `tiny` on the synthetic world (`eval_tiny`).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from embedded_chat import ASKED, say
from embedded_worlds import frame_of
from eval_tiny import evaluate_tiny, table_of, write_score
from natural_questions import Examiner, Query, begins
from natural_set import CLIPS, NaturalClip, natural_clips

from vstream import DecodeOptions, Engine
from vstream.app.lab.world import World
from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.embedded.fetch import embedded_dir
from vstream.models.embedded.looking import place_word
from vstream.models.spans import join_spans

MOST_TOKENS = 40
UNTRAINED_CLIPS = 5  # the untrained model is slow, since it rambles
PARTS = ("trained", "another clip", "question alone", "untrained", "chat", "looks", "tiny")
LOOKS = 100  # pictures of the synthetic world
RESAMPLES = 2000


@dataclass(frozen=True)
class Marked:
    """One answer: the clip it is about, the question's type, and how right it is."""

    clip: int
    kind: str
    question: str
    answer: str
    score: float
    false_yes: bool | None


def mark(clip: int, query: Query, answer: str) -> Marked:
    """Scores an answer; `false_yes` is None where "yes" would be right."""
    false = begins(answer, "yes") if query.false_yes else None
    return Marked(clip, query.kind, query.text, answer, query.score(answer), false)


def watched(engine: Engine, clip: NaturalClip, queries: Sequence[Query]) -> list[str]:
    """Answers of a session that watches the clip; questions about another clip's moments are asked at the end."""
    session = engine.open(clip.video, decode=DecodeOptions(max_tokens=MOST_TOKENS))
    last = clip.scenes[-1].end - 1
    asked = [session.ask(query.text, at=min(query.at, last) if query.at is not None else "end") for query in queries]
    answers = [answer.text() for answer in asked]
    session.close()
    return answers


def unseen(adapter: EmbeddedAdapter, query: Query) -> str:
    """The answer to the question alone, no frame shown."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=adapter.config)
    embeds = join_spans([adapter.sink(), adapter.question(query.text).span]).embeds
    ids: list[int] = []
    with torch.inference_mode():
        while len(ids) < MOST_TOKENS and not (ids and ids[-1] in adapter.eos_ids):
            out: Any = adapter.decoder(inputs_embeds=embeds[None], past_key_values=cache)
            ids.append(int(adapter.head(out.last_hidden_state[0, -1]).argmax()))
            embeds = adapter.embed(torch.tensor(ids[-1:]))
    return adapter.text(ids)


def examine(adapter: EmbeddedAdapter, clips: Sequence[NaturalClip], shift: int = 0) -> list[Marked]:
    """All questions of all clips, each asked on the clip `shift` further on."""
    marked = []
    with Engine(adapter) as engine:
        for index, clip in enumerate(clips):
            queries = Examiner(clip, index).queries()
            answers = watched(engine, clips[(index + shift) % len(clips)], queries)
            marked += [mark(index, query, answer) for query, answer in zip(queries, answers, strict=True)]
    return marked


def examine_unseen(adapter: EmbeddedAdapter, clips: Sequence[NaturalClip]) -> list[Marked]:
    """All questions alone."""
    queries = [(index, query) for index, clip in enumerate(clips) for query in Examiner(clip, index).queries()]
    return [mark(index, query, unseen(adapter, query)) for index, query in queries]


def mean_and_interval(values: dict[int, list[float]]) -> dict[str, float]:
    """The mean of all values, and its 95% interval from a bootstrap over clips."""
    rng, clips = random.Random(0), list(values)

    def mean(chosen: Sequence[int]) -> float:
        found = [value for clip in chosen for value in values[clip]]
        return sum(found) / len(found)

    drawn = sorted(mean(rng.choices(clips, k=len(clips))) for _ in range(RESAMPLES))
    low, high = drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]
    count = sum(len(found) for found in values.values())
    return {"mean": round(mean(clips), 3), "low": round(low, 3), "high": round(high, 3), "questions": count}


def by_clip(marked: Sequence[Marked]) -> dict[int, list[float]]:
    """Scores of each clip's questions."""
    found: dict[int, list[float]] = {}
    for one in marked:
        found.setdefault(one.clip, []).append(one.score)
    return found


def summary(marked: Sequence[Marked]) -> dict[str, dict[str, float]]:
    """All questions, every type, and the share of false "yes"."""
    found = {"all": mean_and_interval(by_clip(marked))}
    for kind in dict.fromkeys(one.kind for one in marked):
        found[kind] = mean_and_interval(by_clip([one for one in marked if one.kind == kind]))
    false: dict[int, list[float]] = {}
    for one in marked:
        if one.false_yes is not None:
            false.setdefault(one.clip, []).append(float(one.false_yes))
    return found | {"false yes": mean_and_interval(false)}


def chat_likeness(trained: EmbeddedAdapter, plain: EmbeddedAdapter) -> dict[str, float]:
    """How many of a dozen plain chat answers are the same, and the mean share of the first words that are."""
    same, shares = 0, []
    for prompt in ASKED:
        before, after = (say(adapter, prompt, MOST_TOKENS) for adapter in (plain, trained))
        agree = sum(a == b for a, b in zip(before, after, strict=False)) / max(len(before), len(after))
        same, shares = same + (before == after), [*shares, agree]
        print(f"chat  {prompt}\n  before: {plain.text(before)!r}\n  after:  {trained.text(after)!r}")
    return {"same": same, "asked": len(ASKED), "agreeing_tokens": round(sum(shares) / len(shares), 3)}


def looks(adapter: EmbeddedAdapter) -> dict[str, float]:
    """How often place and, where one is said, colour are right on pictures of the synthetic world."""
    world = World(10**6, 4 * LOOKS, crowd=0)
    moments = [second for second in range(0, world.duration_seconds, 4) if len(world.at(second)) == 1]
    with torch.inference_mode():
        named = [adapter.describe([frame_of(world, second)])[0] for second in moments]
    truth = [world.at(second)[0] for second in moments]
    pairs = list(zip(named, truth, strict=True))
    places = [one.place == place_word(shown.x, shown.y) for one, shown in pairs]
    colours = [one.colour == shown.thing.colour for one, shown in pairs if one.colour]
    found = {"place": sum(places) / len(places), "colour": sum(colours) / len(colours)}
    found = {name: round(share, 3) for name, share in found.items()}
    print(f"\nlooks: place right {found['place']}, colour {found['colour']} of {len(colours)} said in {len(pairs)}")
    return found | {"colours_said": len(colours), "pictures": len(pairs)}


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    """Prints a table."""
    print(f"\n{title}")
    for kind, one in found.items():
        print(f"  {kind:10} {one['mean']:.3f}  [{one['low']:.3f}, {one['high']:.3f}]  of {one['questions']:.0f}")


def tiny_scores(given: argparse.Namespace) -> dict[str, Any]:
    """What `eval_tiny` finds, if it was asked for."""
    if "tiny" not in given.only:
        return {}
    found = evaluate_tiny(quick=given.quick)
    print(f"\ntiny\n{table_of(found)}")
    return found


def embedded_scores(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for about the embedded model, its headline first."""
    if set(given.only) == {"tiny"}:
        return {}
    clips = natural_clips(given.clips)
    adapter = EmbeddedAdapter(embedded_dir())
    plain = EmbeddedAdapter(embedded_dir(), trained=False)
    parts = {
        "trained": lambda: examine(adapter, clips),
        "another clip": lambda: examine(adapter, clips, 1),
        "question alone": lambda: examine_unseen(adapter, clips),
        "untrained": lambda: examine(plain, clips[:UNTRAINED_CLIPS]),
    }
    scores: dict[str, Any] = {}
    for title in (title for title in parts if title in given.only):
        marked = parts[title]()
        scores[title] = summary(marked)
        show(title, scores[title])
        if given.answers:
            given.answers.write("".join(json.dumps({"part": title} | asdict(one)) + "\n" for one in marked))
            given.answers.flush()
    if "chat" in given.only:
        scores["chat"] = chat_likeness(adapter, plain)
    if "looks" in given.only:
        scores["looks"] = looks(adapter)
    if given.write:
        found = scores["trained"]["all"]
        write_score("embedded", found["mean"], found, "held-out questions on natural video")
    return headline(scores) | ({"details": scores} if given.json else {})


def headline(scores: dict[str, Any]) -> dict[str, Any]:
    """The figures that the last line names first; None for what was not asked for."""
    trained, control = (scores.get(part, {}).get("all", {}) for part in ("trained", "another clip"))
    return {"exact_match": trained.get("mean"), "low": trained.get("low"), "control": control.get("mean")}


def main() -> None:
    """Prints tables and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="all details in the last line too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    parser.add_argument("--clips", type=int, default=CLIPS, help="only the first so many videos")
    parser.add_argument("--quick", action="store_true", help="`tiny` on fewer and shorter streams")
    parser.add_argument("--answers", type=argparse.FileType("w"), help="write every answer there, as JSON lines")
    parser.add_argument("--write", action="store_true", help="write the embedded model's score into the package")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.write and (given.clips != CLIPS or "trained" not in given.only):
        parser.error("--write needs the part `trained` on all videos")
    torch.set_num_threads(given.threads)
    last = {"tiny": tiny_scores(given), "embedded": embedded_scores(given)}
    print(json.dumps({model: scores for model, scores in last.items() if scores}))


if __name__ == "__main__":
    main()

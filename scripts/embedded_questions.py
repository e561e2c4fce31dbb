"""Questions about a story, with the answers that can be read off it: what the embedded model is trained to say.

Every type of question has many wordings, some of them held out of training, and an answer begins alike whatever the
wording: with what, with when, or with yes and no. It knows stories, and nothing of models or tokens.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from embedded_stories import Scene, Story

from vstream.models.embedded.naming import Names

HELD_OUT_PART = 8  # one wording in so many is never trained on
CARELESS = 0.1  # of questions are typed without capitals and question mark
MOST_LISTED = 8
MOST_PLACES = 3
POSITIONS = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
    "middle": "in the middle",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question, its answer and its type."""

    kind: str
    question: str
    answer: str


PATTERNS = {
    "now": (
        "What [is shown|is visible|is on the screen|is being shown|is there|appears|can be seen] "
        "[now|right now|currently]?",
        "What [do|can] you see [now|right now|currently|at the moment]?", "What is this?", "What are we looking at?",
        "What [does the video show|is in the picture|is on the screen] [now|right now|at the moment]?",
        "[Which|What] [object|thing] [is visible|is shown|can be seen] [now|right now|at the moment]?",
    ),
    "at": (
        "What [was|is] [shown|visible|on screen|there|displayed|in the picture] at {time}?",
        "At {time}, what [was|is] [shown|there|on screen|in the picture]?",
        "What [did|do|can] you see at {time}?", "What [does|did] the [picture|camera|screen] show at {time}?",
        "[Tell me|Say] what [was|is] [there|shown|visible] at {time}.", "{time}: what [was|is] [shown|there]?",
    ),
    "when": (
        "When [was|is] {the} [shown|visible|there|seen|in the picture|displayed|in the video]?",
        "When did {the} [appear|come|come up|show up|turn up]?", "When [did|do|could|can] you see {the}?",
        "[At what time|What time|At which time] [was|is] {the} [shown|visible|there|in the picture]?",
        "When was there {a}?", "When did {a} [appear|come|show up]?",
        "[Tell me|Say] when {the} [was shown|was there|appeared].",
    ),
    "first": (
        "When [was|is] {the} [first shown|first visible|seen first|shown for the first time]?",
        "When did {the} [first appear|appear first|come up for the first time|start]?",
        "When did you first see {the}?",
        "At what time [did|does] {the} [start|begin|first appear]?",
    ),
    "last": (
        "When [was|is] {the} [last shown|last visible|seen last|shown for the last time]?",
        "When did you last see {the}?",
        "When was {the} [visible|there|seen] [last|for the last time]?",
    ),
    "is": (
        "[Is|Was] there {a}[| in the video| in the picture| at any time| somewhere]?",
        "[Was|Is] {a} [shown|visible|seen|on screen|in the picture]?",
        "[Did|Do|Could|Can] you see {a}[| in it| at some point]?",
        "[Has|Have] {a} been [shown|seen|visible]?", "[Does|Did] the video [contain|include|have] {a}?",
        "[Did|Does] {a} [appear|show up|come up]?", "Was there ever {a}?", "Any {word}?",
    ),
    "group": (
        "[What|Which|What kind of|What type of|What sort of] {word} [is|was] "
        "[shown|there|in the picture|visible|seen|this]?",
        "[What|Which|What kind of|What type of|What sort of] {word} [do|did|can|could] you see?",
        "[What|Which|What kind of] {word} [appeared|was it|came up]?", "Name the {word}[| that was shown| in it].",
    ),
    "describe": (
        "[Describe|Summarize|Sum up] [the video|what you saw|what happened|what was shown].",
        "What [was shown|happened|was seen|was visible][| in the video| so far| overall| from start to end]?",
        "What [did|could] you see[| in the video| so far| overall]?",
        "What [does the video show|was in the video|is in it]?",
        "[Tell me|List|Say] [what you saw|what was shown|what there was][| in order]",
        "[Which|What] things were [shown|seen|in the video]?",
    ),
    "after": (
        "What [came|was shown|was seen|was there|was visible] [|right |directly |just ]after {the}?",
        "What [came|was] next after {the}?", "What followed {the}?", "What did you see [|right ]after {the}?",
    ),
    "before": (
        "What [came|was shown|was seen|was there|was visible] [|right |directly |just ]before {the}?",
        "What preceded {the}?", "What did you see [|right ]before {the}?",
    ),
    "count": (
        "How many [|different ]things [were shown|did you see|are in the video|were there]?",
        "Count the [|different ]things.",
    ),
    "colour": (
        "[What|Which] colour [is|was] {the}?", "What [is|was] the colour of {the}?", "What color [is|was] {the}?",
        "[Tell me|Say] the colour of {the}.", "What colour did {the} have?",
    ),
    "where": (
        "Where [is|was] {the}[| in the picture]?", "In which part of the picture [is|was] {the}?",
        "Where in the picture [is|was] {the}?", "Where did you see {the}[| in the picture]?",
        "[Is|Was] {the} on the left or on the right?", "On which side [is|was] {the}?",
    ),
    "where at": (
        "Where [is|was] {the} at {time}?", "At {time}, where [is|was] {the}?",
        "Where was {the} in the picture at {time}?",
    ),
    "unknown": (
        "What is the man's name?", "What did [he|she] say?", "What [music|song] is playing?",
        "What does it [smell|taste] like?", "Where was [the video|it] recorded?", "Why did [he|she|they] leave?",
        "How much does it cost?", "What is the phone number?", "What is written on the [sign|wall]?",
        "How [old|heavy|big] is it?",
        "Who [made|filmed] the video?", "What language do they speak?",
        "Who is the owner?",
        "What is [he|she] thinking about?", "What is the name of the [city|street]?", "How does the story end?",
    ),
}  # fmt: skip
"""Of each type, every choice in brackets makes another wording."""


def expanded(pattern: str) -> list[str]:
    """All wordings of a pattern."""
    choices = [part.split("|") for part in re.split(r"[\[\]]", pattern)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _split() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    trained: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    for kind, patterns in PATTERNS.items():
        wordings = list(dict.fromkeys(wording for pattern in patterns for wording in expanded(pattern)))
        random.Random(kind).shuffle(wordings)
        cut = len(wordings) // HELD_OUT_PART
        held_out[kind], trained[kind] = wordings[:cut], wordings[cut:]
    return trained, held_out


WORDINGS, HELD_OUT = _split()
DOING = {
    "launched": ("rocket",), "driven": ("car", "truck", "bus", "vehicle", "train", "motorcycle"), "sailed": ("ship",
    "boat"),
    "flown": ("aircraft",), "eaten": ("food", "fruit", "vegetable", "dessert", "bread"), "drunk": ("drink",),
    "worn": ("clothing", "hat", "shoe"), "played": ("instrument", "guitar", "piano"), "ridden": ("bicycle",
    "motorcycle", "horse"),
}  # fmt: skip
STRANGE = (
    "moon", "ghost", "robot", "unicorn", "dragon", "newspaper", "river", "child", "woman", "statue", "snowman",
    "map", "letter",
    "football player", "clown", "mermaid", "feather", "passport", "cloud", "dollar bill",
)  # fmt: skip
UNCOUNTED = {
    "hay", "wool", "guacamole", "rapeseed", "corn", "broccoli", "dough", "toilet paper", "sunscreen", "perfume",
    "clothing",
    "equipment", "furniture", "food", "cloth", "bread", "chain mail", "chocolate sauce", "face powder", "hair spray",
    "lotion",
    "velvet fabric", "carbonara", "fruit", "ice cream",
}  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def clock(second: int) -> str:
    """`m:ss`, as frames are stamped."""
    return f"{second // 60}:{second % 60:02}"


def a(name: str) -> str:
    """With its indefinite article."""
    last = name.split()[-1].lower()
    if name in UNCOUNTED or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return name
    vowel = name[0].lower() in "aeiou" and not name.lower().startswith(("uni", "one"))
    return f"an {name}" if vowel or name.lower().startswith("hour") else f"a {name}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def listed(names: Sequence[str]) -> str:
    """`a cat, then a dog, then a cat`; the end of long lists is left out."""
    more = ", and more" if len(names) > MOST_LISTED else ""
    return ", then ".join(a(name) for name in names[:MOST_LISTED]) + more


class Asker:
    """Asks about one story."""

    def __init__(self, story: Story, names: Names, rng: random.Random, *, held_out: bool = False) -> None:
        self.story, self.names, self.rng, self.held_out = story, names, rng, held_out
        self.scenes = list(story.scenes)
        self.seen = {word for frame in story.frames for word in frame.named.chain}

    def ask(self, kind: str) -> Asked | None:
        """A question of this type, None where the story has none."""
        made = getattr(self, f"_{kind.replace(' ', '_')}")()
        return Asked(kind, *made) if made else None

    def _wording(self, kind: str, **words: str) -> str:
        wording = self.rng.choice((HELD_OUT if self.held_out else WORDINGS)[kind]).format(**words)
        careless = self.rng.random() < CARELESS
        return f"{wording[0].lower()}{wording[1:].rstrip('?.')}" if careless else wording

    def _scene_at(self, index: int) -> str:
        """What the frame shows, or its scene where the frame itself was taken for something else."""
        frame = self.story.frames[index]
        scene = next(scene for scene in self.scenes if frame in scene.frames)
        return frame.named.name if scene.name in frame.named.chain else scene.name

    def _now(self) -> tuple[str, str]:
        return self._wording("now"), sentence(a(self._scene_at(-1)))

    def _at(self) -> tuple[str, str]:
        frames = self.story.frames
        if self.rng.random() < 0.12:
            missing = self._missing_second()
            return self._wording("at", time=clock(missing)), f"I did not see {clock(missing)}."
        index = self.rng.randrange(len(frames))
        time = clock(frames[index].second)
        return self._wording("at", time=time), sentence(a(self._scene_at(index)))

    def _missing_second(self) -> int:
        seen = {frame.second for frame in self.story.frames}
        near = [
            second for second in range(max(seen) + 3) if second not in seen and all(abs(second - s) > 2 for s in seen)
        ]
        return self.rng.choice(near[-200:] or [max(seen) + self.rng.randrange(5, 300)])

    def _thing(self) -> str:
        """A word for something that was shown: mostly its name, else something broader."""
        chain = self.rng.choice(self.scenes).chain
        return chain[0] if self.rng.random() < 0.65 else self.rng.choice(chain)

    def _with(self, word: str) -> list[Scene]:
        return [scene for scene in self.scenes if word in scene.chain]

    def _when(self) -> tuple[str, str]:
        word = self._thing()
        if self.rng.random() < 0.12:
            word = self._absent()
            return self._wording("when", the=f"the {word}", a=a(word)), f"I did not see {a(word)}."
        times = [f"at {clock(scene.start)}" for scene in self._with(word)[:3]]
        return self._wording("when", the=f"the {word}", a=a(word)), sentence(" and ".join(times))

    def _first(self) -> tuple[str, str]:
        word = self._thing()
        return self._wording("first", the=f"the {word}"), f"At {clock(self._with(word)[0].start)}."

    def _last(self) -> tuple[str, str]:
        word = self._thing()
        return self._wording("last", the=f"the {word}"), f"At {clock(self._with(word)[-1].last)}."

    def _is(self) -> tuple[str, str]:
        return self._no() if self.rng.random() < 0.55 else self._yes()

    def _yes(self) -> tuple[str, str]:
        word = self._thing()
        scene = self._with(word)[0]
        return self._wording("is", a=a(word), word=word), f"Yes, {a(scene.name)} at {clock(scene.start)}."

    def _no(self) -> tuple[str, str]:
        word = self._absent()
        asked = self._wording("is", a=a(word), word=word)
        for broad in self._broader(word):
            unsure = [scene for scene in self.scenes if scene.name == broad]
            if unsure and broad != "object":
                return asked, f"Perhaps, {a(broad)} at {clock(unsure[0].start)}."
        return asked, f"No, I did not see {a(word)}."

    def _broader(self, word: str) -> tuple[str, ...]:
        row = next((row for row in self.names.rows if word in row), ("", "", ""))
        return row[row.index(word) + 1 :] if word in row else ()

    def _absent(self) -> str:
        """Something that no frame shows: often near to what one does."""
        draws = (self._sibling, self._sibling, self._any_class, self._any_group, self._any_group, self._strange)
        for _ in range(50):
            word = self.rng.choice(draws)()
            if word not in self.seen:
                return word
        return "unicorn"

    def _sibling(self) -> str:
        chain = self.rng.choice(self.scenes).chain
        near = [row for row in self.names.rows if chain[-1] == row[2] and (len(chain) < 2 or chain[-2] in row)]
        return self.rng.choice(near or self.names.rows)[0]

    def _any_class(self) -> str:
        return self.rng.choice(self.names.rows)[0]

    def _any_group(self) -> str:
        return self.rng.choice(self.names.rows)[self.rng.choice((1, 1, 2))]

    def _strange(self) -> str:
        return self.rng.choice(STRANGE)

    def _group(self) -> tuple[str, str]:
        if self.rng.random() < 0.15:
            return self._doing()
        word = self.rng.choice(self.rng.choice(self.scenes).chain[-2:])
        if self.rng.random() < 0.15:
            word = self._any_group()
        return self._wording("group", word=word), self._of(self._with(word), f"{a(word)}", word)

    def _doing(self) -> tuple[str, str]:
        shown = [verb for verb, groups in DOING.items() if any(self._with(group) for group in groups)]
        verb = self.rng.choice(shown if shown and self.rng.random() < 0.8 else sorted(DOING))
        scenes = [scene for scene in self.scenes if any(group in scene.chain for group in DOING[verb])]
        return f"What is being {verb}?", self._of(scenes, f"anything being {verb}", "")

    def _of(self, scenes: Sequence[Scene], wanted: str, word: str) -> str:
        found = list(dict.fromkeys(scene.name for scene in scenes))
        if not found:
            return f"I did not see {wanted}."
        if found == [word]:
            return f"{sentence(a(word))[:-1]}, I cannot tell which."
        return sentence(listed([name for name in found if name != word]))

    def _describe(self) -> tuple[str, str]:
        return self._wording("describe"), sentence(listed([scene.name for scene in self.scenes]))

    def _after(self) -> tuple[str, str] | None:
        return self._beside("after", 1)

    def _before(self) -> tuple[str, str] | None:
        return self._beside("before", -1)

    def _beside(self, kind: str, step: int) -> tuple[str, str] | None:
        once = [i for i, scene in enumerate(self.scenes) if len(self._with(scene.name)) == 1]
        if not once:
            return None
        at = self.rng.choice(once)
        asked = self._wording(kind, the=f"the {self.scenes[at].name}")
        if not 0 <= at + step < len(self.scenes):
            return asked, "I saw nothing else."
        return asked, sentence(a(self.scenes[at + step].name))

    def _count(self) -> tuple[str, str] | None:
        found = list(dict.fromkeys(scene.name for scene in self.scenes))
        if len(found) >= len(NUMBERS):
            return None
        return self._wording("count"), sentence(f"{NUMBERS[len(found)]}: {', '.join(a(name) for name in found)}")

    def _colour(self) -> tuple[str, str]:
        the, scenes = self._it_or_thing()
        colour = next((scene.colour for scene in scenes if scene.colour), "")
        return self._wording("colour", the=the), sentence(colour or "I cannot tell its colour")

    def _it_or_thing(self) -> tuple[str, list[Scene]]:
        """What is there now, called "it", or a thing and all scenes of it."""
        if self.rng.random() < 0.2:
            return "it", self.scenes[-1:]
        word = self._thing()
        return f"the {word}", self._with(word)

    def _where(self) -> tuple[str, str]:
        the, scenes = self._it_or_thing()
        places = scenes[0].places[:MOST_PLACES]
        return self._wording("where", the=the), sentence(", then ".join(POSITIONS[one] for one in places))

    def _where_at(self) -> tuple[str, str]:
        scene = self.rng.choice(self.scenes)
        frame = self.rng.choice(scene.frames)
        asked = self._wording("where at", the=f"the {scene.name}", time=clock(frame.second))
        return asked, sentence(POSITIONS[frame.named.place])

    def _unknown(self) -> tuple[str, str]:
        return self._wording("unknown"), "I cannot tell that from the video."


MIX = {
    "is": 6, "group": 4, "when": 5, "at": 5, "now": 2, "describe": 2, "first": 2, "last": 1, "after": 2.5,
    "before": 1.5, "colour": 1, "where": 1, "where at": 0.5, "count": 0.4, "unknown": 0.7,
}  # fmt: skip


def ask(story: Story, names: Names, rng: random.Random, count: int, *, held_out: bool = False) -> list[Asked]:
    """About so many questions of the usual mix."""
    asker = Asker(story, names, rng, held_out=held_out)
    kinds = rng.choices(list(MIX), list(MIX.values()), k=count)
    made = (asker.ask(kind) for kind in kinds)
    return [asked for asked in made if asked is not None]

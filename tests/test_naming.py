"""How frames are named, what training streams and questions are made of them, and when an answer counts as right."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vstream.models.embedded.naming import NOISE, Named, goes_on, load_names, running_means

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import embedded_questions
import natural_questions
import natural_set
from embedded_stories import NaturalStories, Scene, Shown, Story, called, written

NAMES = load_names()


def likely(**chances: float) -> torch.Tensor:
    """Probabilities [1, 1000] with the given chances for the first classes of these names."""
    found = torch.zeros(1, 1000)
    for word, chance in chances.items():
        index = next(i for i, row in enumerate(NAMES.rows) if row[0] == word.replace("_", " "))
        found[0, index] = chance
    return found


# Naming ----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_class_and_one_kind_for_each_group():
    assert len(NAMES.rows) == 1000
    assert NAMES.rows[281] == ("tabby cat", "cat", "animal")
    assert NAMES.rows[967] == ("espresso", "drink", "drink")
    assert 300 < sum(row[2] == "animal" for row in NAMES.rows) < 420


@pytest.mark.parametrize(
    ("chances", "name"),
    [
        ({"Samoyed": 0.9}, "Samoyed"),
        ({"Samoyed": 0.4, "Great_Pyrenees": 0.3, "Kuvasz": 0.25}, "dog"),
        ({"Samoyed": 0.2, "zebra": 0.2, "koala": 0.2, "ostrich": 0.2, "lion": 0.2}, "animal"),
        ({"Samoyed": 0.3, "espresso": 0.2}, "dog"),
        ({"Samoyed": 0.5, "Kuvasz": 0.2}, "dog"),
        ({"Samoyed": 0.5, "espresso": 0.3}, "Samoyed"),
        ({"koala": 0.3}, "animal"),
    ],
)
def test_a_frame_is_named_as_specifically_as_it_is_sure(chances, name):
    found = NAMES.name(likely(**chances))
    assert found[0].name == name
    assert 0 < found[0].probability <= 1.001


def test_many_small_probabilities_are_not_an_animal():
    crowd = torch.zeros(1, 1000)
    crowd[0, :398] = NOISE / 2
    crowd[0, 967] = 0.45
    assert NAMES.name(crowd)[0].name == "espresso"


def test_where_all_is_noise_the_likeliest_kind_is_said():
    assert NAMES.name(torch.full((1, 1000), 0.001))[0].name == "animal"


def test_a_chain_goes_from_narrow_to_broad():
    named = NAMES.name(likely(Samoyed=0.9))[0]
    assert named.chain == ("Samoyed", "dog", "animal")
    assert named.broader == "dog"
    assert Named(("animal",)).broader == ""


def test_names_are_steadied_back_to_the_last_cut():
    """Three frames of one scene and two of another: a frame that errs alone is outvoted, and no cut is crossed."""
    likely = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    features = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]])
    means = running_means(likely, goes_on(features))
    assert means[:, 0].tolist() == pytest.approx([1, 1 / 2, 2 / 3, 0, 0])
    assert torch.equal(running_means(likely[:1], goes_on(features[:1])), likely[:1])


# Training streams ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories() -> NaturalStories:
    """About a classifier whose weights are random: of the right shape, and without the real one."""
    weights = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    return NaturalStories(NAMES, weights, torch.zeros(1000))


def test_a_story_follows_from_its_seed(stories):
    one, same, other = (stories(random.Random(seed), 24) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    seconds = [frame.second for frame in one.frames]
    assert len(seconds) == 24
    assert seconds == sorted(set(seconds))


def shown(*names: str, start: int = 0) -> tuple[Shown, ...]:
    """Frames of these names, one a second."""
    rows = {row[0]: row for row in NAMES.rows} | {"cat": ("cat", "animal"), "animal": ("animal",)}
    return tuple(Shown(start + i, Named(tuple(dict.fromkeys(rows[name])))) for i, name in enumerate(names))


def test_a_scene_is_called_what_most_of_its_frames_agree_on():
    assert called(shown("lion", "lion", "tiger")) == ("lion", "cat", "animal")
    assert called(shown("lion", "tiger", "cat")) == ("cat", "animal")
    assert called(shown("lion", "espresso", "lion", "tiger", "zebra")) == ("cat", "animal")
    assert called(shown("espresso", "espresso", "lion", "zebra")) == ("espresso", "drink")


def test_frames_that_go_on_are_not_written_out():
    """Each clip of four begins with a line; within it, a new name or a gap does."""
    frames = written(shown("lion", "lion", "tiger", "tiger", "tiger", "tiger"))
    assert [frame.has_line for frame in frames] == [True, False, True, False, True, False]
    late = written([*shown("lion"), *shown("lion", start=3), *shown("lion", start=4)])
    assert [frame.has_line for frame in late] == [True, True, False]
    scene = Scene(tuple(frames[2:]), called(frames[2:]))
    assert (scene.start, scene.last) == (2, 4)


def test_a_scenes_places_are_where_it_went():
    frames = [replace(frame, named=replace(frame.named, place=place)) for frame, place in zip(
        shown("lion", "lion", "lion", "lion", "lion"), ("left", "left", "middle", "middle", "right"), strict=True
    )]  # fmt: skip
    assert Scene(tuple(frames), called(frames)).places == ["left", "middle", "right"]


def test_a_scenes_colour_is_the_one_most_written():
    colours = ("", "red", "brown", "red", "brown", "brown")
    frames = [replace(frame, named=replace(frame.named, colour=colour), has_line=index < 4) for index, (frame, colour)
              in enumerate(zip(shown(*["lion"] * 6), colours, strict=True))]  # fmt: skip
    assert Scene(tuple(frames), called(frames)).colour == "red"
    assert Scene(tuple(frames[:1]), called(frames)).colour == ""


def story() -> Story:
    """An espresso, then a lion, then a violin."""
    frames = shown("espresso", "espresso"), shown("lion", "lion", "lion", start=5), shown("violin", start=9)
    return Story(tuple(Scene(each, called(each)) for each in frames))


@pytest.mark.parametrize("kind", sorted(embedded_questions.MIX))
@pytest.mark.parametrize("seed", range(8))
def test_answers_can_be_read_off_the_story(kind, seed):
    asker = embedded_questions.Asker(story(), NAMES, random.Random(seed))
    asked = asker.ask(kind)
    assert asked is not None
    assert asked.answer.endswith(".")
    assert "{" not in asked.question + asked.answer
    if kind == "is":
        wanted = {word for frame in story().frames for word in frame.named.chain}
        named = natural_questions.truth().named(asked.question) & wanted
        assert asked.answer.startswith("Yes" if named else ("No", "Perhaps"))


def test_every_type_has_wordings_that_training_never_sees():
    assert set(embedded_questions.PATTERNS) == set(embedded_questions.MIX)
    for kind, trained in embedded_questions.WORDINGS.items():
        held_out = embedded_questions.HELD_OUT[kind]
        assert held_out or kind == "where at"  # which has five
        assert len(trained) >= 5
        assert not set(trained) & set(held_out)


def test_a_pattern_gives_a_wording_for_every_choice():
    found = embedded_questions.expanded("[Is|Was] it[| here]?")
    assert found == ["Is it?", "Is it here?", "Was it?", "Was it here?"]


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("espresso", "an espresso"), ("unicycle", "a unicycle"), ("hourglass", "an hourglass"), ("jeans", "jeans"),
     ("Great Pyrenees", "Great Pyrenees"), ("compass", "a compass"), ("bread", "bread")],
)  # fmt: skip
def test_articles(name, phrase):
    assert embedded_questions.a(name) == phrase


# Scoring ---------------------------------------------------------------------------------------------------


@pytest.fixture
def examiner() -> natural_questions.Examiner:
    """About a clip of a lion, then a violin."""
    lion, violin = (next(one for one in natural_set.things() if one.word == word) for word in ("lion", "violin"))
    scenes = natural_set.Seen(lion, 0, 6), natural_set.Seen(violin, 6, 12)
    return natural_questions.Examiner(natural_set.NaturalClip(Path("none"), scenes), 0)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("A lion.", 1), ("A cat.", 1), ("Lions!", 1), ("An animal.", 0), ("A dandelion.", 0), ("A tiger cat.", 0),
        ("A sea lion.", 0), ("A lion, then a violin.", 0),
    ],
)  # fmt: skip
def test_a_thing_is_right_by_its_name_or_group_alone(examiner, answer, score):
    assert examiner._only(examiner.scenes[0].thing)(answer) == score


@pytest.mark.parametrize(("answer", "score"), [("From 0:07 to 0:11.", 1), ("At 0:05.", 1), ("0:08", 0), ("Now.", 0)])
def test_a_time_is_right_to_the_second(examiner, answer, score):
    assert examiner._when(examiner.scenes[1]).score(answer) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [("The video shows a lion, then a violin.", 1), ("A violin, then a lion.", 0.5), ("A lion.", 0.5),
     ("A cat and a pan.", 0.5),
     ("A lion, a cup, a hat, a violin.", 0.5), ("", 0)],
)  # fmt: skip
def test_a_description_is_right_by_the_share_named_in_order(examiner, answer, score):
    assert examiner._describe().score(answer) == score


def test_what_is_absent_is_not_shown(examiner):
    for thing in examiner._absent(6):
        assert thing.word not in ("lion", "violin", "cat", "tiger cat")
        query = examiner._no(thing)
        assert query.false_yes
        assert query.score("No, I did not see one.") == 1
        assert query.score("Yes, at 0:01.") == query.score("Nothing.") == 0


def test_every_clip_has_its_own_things_and_enough_questions():
    clips = natural_set.scripts_of_clips()
    used = [scene.thing.picture for scenes in clips for scene in scenes]
    assert len(used) == len(set(used)) == len(natural_set.things()) >= 40
    asked = [
        query
        for index, scenes in enumerate(clips)
        for query in natural_questions.Examiner(natural_set.NaturalClip(Path("none"), tuple(scenes)), index).queries()
    ]
    assert len(asked) >= 300
    words = {"word": "X", "the": "the X", "a": "a X", "time": "0:00"}
    trained_on = {one.format(**words) for wordings in embedded_questions.WORDINGS.values() for one in wordings}
    assert (
        not {one.format(what="What X", **words) for ones in natural_questions.WORDINGS.values() for one in ones}
        & trained_on
    )


def test_nothing_of_the_sample_is_in_the_set():
    sample = (Path(__file__).parent.parent / "scripts" / "make_sample").read_text()
    assert not any(thing.picture in sample for thing in natural_set.things())

"""Retrieval: the budget, the order, and which block a question finds."""

from dataclasses import replace

import pytest
import torch
from blocks import make_block
from hypothesis import given, settings
from hypothesis import strategies as st
from test_condense import random_block

from vstream.memory.columns import rows_of
from vstream.memory.condense import condense
from vstream.memory.levels import GIST
from vstream.memory.policies import RETRIEVERS, make_retriever
from vstream.memory.representatives import Kept
from vstream.memory.retriever import Candidates, Query, Retriever

LAYERS, HEADS, DIM = 2, 2, 32
NO_MEAN = torch.zeros(LAYERS, HEADS, 1, DIM)
QUERY = Query(torch.zeros(LAYERS, HEADS, DIM), torch.zeros(LAYERS, HEADS, 1, DIM))
by_mean_key = pytest.mark.parametrize("policy", ["centred", "maxsim", "rekv"])


def candidates(keys, rows=None, mean=None, budget=0):
    """Blocks of mean keys [L, K, B, D], with rows of 4 tokens each, their plain mean and a budget, unless given."""
    rows = rows_of(make_block(i, tokens=4).meta for i in range(keys.shape[2])) if rows is None else rows
    mean = Kept.of(keys).mean(torch.ones(keys.shape[2])) if mean is None else mean
    return Candidates(rows, Kept.of(keys), mean, budget_tokens=budget)


class Told(Retriever):
    """Scores as told: all that a policy must write."""

    name = "told"

    def __init__(self, scores, neighbours=0):
        super().__init__(neighbours)
        self.told = scores

    def score(self, query, blocks):
        assert len(self.told) == len(blocks)
        return torch.tensor(self.told, dtype=torch.float64)


def chosen(scores, sizes, budget, neighbours=0):
    """The selection among blocks of these scores and sizes, whose ids are 10, 11, ..."""
    metas = [make_block(10 + i, tokens=size).meta for i, size in enumerate(sizes)]
    representatives = torch.zeros(LAYERS, HEADS, len(sizes), DIM)
    return Told(scores, neighbours).select(QUERY, candidates(representatives, rows_of(metas), NO_MEAN, budget))


blocks = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 2.5]), st.integers(1, 12)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(blocks=blocks, budget=st.integers(0, 60))
def test_the_best_that_fit_are_chosen(blocks, budget):
    """Within the budget, in time order; whoever was left out had no room behind those before it."""
    scores, sizes = zip(*blocks, strict=True)
    selection = chosen(scores, sizes, budget)
    size_of = dict(enumerate(sizes, start=10))
    assert sum(size_of[i] for i in selection.ids) <= budget
    assert list(selection.ids) == sorted(set(selection.ids))
    assert selection.scores.tolist() == list(scores)
    ranked = sorted(size_of, key=lambda i: (-scores[i - 10], i))
    for place, block_id in enumerate(ranked):
        before = sum(size_of[i] for i in ranked[:place] if i in selection.ids)
        assert (block_id in selection.ids) == (before + size_of[block_id] <= budget)


def test_ties_go_to_the_earlier():
    assert chosen([1.0, 2.0, 2.0, 2.0], [4] * 4, 8).ids == (11, 12)
    assert chosen([0.0, -0.0, 0.0], [4] * 3, 4).ids == (10,)


def test_what_does_not_fit_leaves_room_for_what_does():
    assert chosen([3.0, 2.0, 1.0], [10, 3, 3], 7).ids == (11, 12)


def test_a_moment_that_is_named_comes_first():
    """Whatever the scores; further moments and the rest of the budget go by score as ever."""
    metas = [make_block(10 + i, tokens=4).meta for i in range(5)]
    metas = [replace(meta, start_seconds=4.0 * i, end_seconds=4.0 * i + 3) for i, meta in enumerate(metas)]
    representatives, rows = torch.zeros(LAYERS, HEADS, 5, DIM), rows_of(metas)

    def ids(budget, *moments):
        query = replace(QUERY, moments=moments)
        blocks = candidates(representatives, rows, NO_MEAN, budget)
        return Told([1.0, 2.0, 3.0, 4.0, 5.0]).select(query, blocks).ids

    assert ids(8) == (13, 14)
    assert ids(4, 6.0) == (11,)
    assert ids(8, 7.0, 900.0) == (11, 14)
    assert ids(8, 3.0, 4.0) == (10, 11)


@settings(max_examples=200, deadline=None)
@given(blocks=blocks, budget=st.integers(0, 60), neighbours=st.integers(0, 3))
def test_neighbours_come_right_behind_their_block(blocks, budget, neighbours):
    """As a plain loop has it: by the best score around, then by how near that is, then by time."""
    scores, sizes = zip(*blocks, strict=True)
    reach = range(-neighbours, neighbours + 1)

    def rank(i):
        around = [(scores[i + step], -abs(step)) for step in reach if 0 <= i + step < len(scores)]
        best, distance = max(around)
        return -best, -distance, i

    room, expected = budget, []
    for i in sorted(range(len(scores)), key=rank):
        if sizes[i] <= room:
            room -= sizes[i]
            expected.append(10 + i)
    selection = chosen(scores, sizes, budget, neighbours)
    assert selection.ids == tuple(sorted(expected))
    assert selection.scores.tolist() == list(scores), "evidence keeps the policy's own scores"


def test_without_neighbours_the_best_stand_alone():
    assert chosen([0.0, 3.0, 0.0, 2.0, 0.0], [4] * 5, 12).ids == (10, 11, 13)
    assert chosen([0.0, 3.0, 0.0, 2.0, 0.0], [4] * 5, 12, neighbours=1).ids == (10, 11, 12)


def test_no_budget_chooses_nothing_but_scores_all():
    selection = chosen([1.0, 2.0], [1, 1], 0)
    assert selection.ids == ()
    assert selection.scores.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("policy", sorted(RETRIEVERS))
def test_no_candidates_no_choice(policy):
    empty = torch.zeros(LAYERS, HEADS, 0, DIM).half()
    ids, scores = make_retriever(policy).select(QUERY, candidates(empty, rows_of([]), NO_MEAN, 100))
    assert ids == ()
    assert len(scores) == 0


def test_a_policy_must_score():
    with pytest.raises(TypeError, match="abstract"):
        type("Silent", (Retriever,), {"name": "silent"})()


@pytest.mark.parametrize("name", ["", "Centred", "best"])
def test_an_unknown_policy_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown retrieval policy '{name}'; choose one of centred, embedding, hier"):
        make_retriever(name)


@pytest.mark.parametrize("policy", sorted(RETRIEVERS))
def test_a_policy_is_found_by_its_name(policy):
    assert make_retriever(policy).name == policy


# What is found --------------------------------------------------------------------------------------------------------


def unit(seed, *size):
    return torch.nn.functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=-1)


def stream(count, *, drift=0.0, common=0.0):
    """Representatives [L, K, B, D]: what each block shows, what all share, and what grows with time.

    Also gives the three apart: [L, K, B, D], and the directions [L, K, D] that all share and that grow.
    """
    content = unit(0, LAYERS, HEADS, count, DIM)
    shared, growing = unit(1, LAYERS, HEADS, DIM), unit(2, LAYERS, HEADS, DIM)
    age = torch.linspace(0, 1, count)[:, None]
    keys = content + common * shared[:, :, None] + drift * age * growing[:, :, None]
    return keys.half(), content, shared, growing


def query_of(mean, *words):
    """A query of mean [L, K, D] whose words look like `words`, [L, K, D] each, or like the mean."""
    return Query(mean, torch.stack(words or (mean,), dim=2))


def found(policy, query, representatives):
    """Which block a question finds when there is room for one."""
    return make_retriever(policy).select(query, candidates(representatives, budget=4)).ids[0]


@by_mean_key
@pytest.mark.parametrize("needle", [0, 17, 99])
def test_a_needle_is_found_without_drift(policy, needle):
    representatives, content, _, _ = stream(100)
    assert found(policy, query_of(content[:, :, needle]), representatives) == needle


@pytest.mark.parametrize("needle", [40, 50, 60])
def test_late_blocks_win_raw_scores_but_not_centred_ones(needle):
    """Keys drift with time, and every query has a little of the direction in which they do."""
    representatives, content, _, growing = stream(100, drift=12.0)
    query = query_of(content[:, :, needle] + 0.3 * growing)
    assert found("rekv", query, representatives) >= 90
    assert found("centred", query, representatives) == needle


@pytest.mark.parametrize("policy", ["centred", "maxsim"])
@pytest.mark.parametrize("needle", [0, 50, 99])
def test_what_all_blocks_share_counts_in_raw_scores_alone(policy, needle):
    """A shared part that one block has a little more of outweighs what the others show, unless the mean is removed."""
    representatives, content, shared, _ = stream(100, common=30.0)
    louder = representatives.clone()
    louder[:, :, 70] *= 1.1
    query = query_of(content[:, :, needle] + 0.5 * shared, content[:, :, needle])
    assert found("rekv", query, louder) == 70
    assert found(policy, query, louder) == needle


def test_one_word_of_many_is_enough_for_maxsim():
    """The mean over a question's words drowns the one that matters; the best match of any one word does not."""
    representatives, content, _, _ = stream(100)
    chatter = [unit(seed, LAYERS, HEADS, DIM) for seed in range(50, 70)]
    words = [*chatter, content[:, :, 33]]
    query = query_of(torch.stack(words).mean(dim=0), *words)
    assert found("maxsim", query, representatives) == 33
    assert found("centred", query, representatives) != 33


def test_maxsim_scores_are_the_best_cosine_in_the_early_layers():
    retriever = make_retriever("maxsim")
    assert [retriever.num_layers_read(num_layers) for num_layers in (1, 4, 6, 30)] == [1, 1, 2, 8]
    representatives = unit(3, 2, HEADS, 5, DIM).half()
    words, mean = unit(4, 2, HEADS, 3, DIM), Kept.of(representatives).mean(torch.ones(5))
    scores = retriever.score(Query(words[:, :, 0], words), candidates(representatives))
    for block in range(5):
        keys = representatives[:, :, block].float() - mean[:, :, 0]  # [L, K, D]
        per_word = [float(torch.cosine_similarity(words[:, :, w], keys, dim=-1).mean()) for w in range(3)]
        assert float(scores[block]) == pytest.approx(max(per_word), abs=1e-5)


def test_centred_scores_are_cosines_per_head():
    representatives, content, _, _ = stream(5, common=2.0)
    mean, query = Kept.of(representatives).mean(torch.ones(5)), content[:, :, 3]
    scores = make_retriever("centred").score(query_of(query), candidates(representatives))
    for block in range(5):
        keys = representatives[:, :, block].float() - mean[:, :, 0]  # [L, K, D]
        assert float(scores[block]) == pytest.approx(
            float(torch.cosine_similarity(query, keys, dim=-1).mean()), abs=1e-5
        )


@pytest.mark.parametrize("policy", ["centred", "maxsim"])
def test_the_length_of_a_query_does_not_matter(policy):
    representatives, content, _, _ = stream(8)
    blocks, score = candidates(representatives), make_retriever(policy).score
    once, ninefold = query_of(content[:, :, 1]), query_of(9 * content[:, :, 1])
    assert torch.allclose(score(once, blocks), score(ninefold, blocks), atol=1e-6)


@pytest.mark.parametrize("policy", ["centred", "maxsim"])
def test_a_single_block_scores_nothing(policy):
    """It is its own mean: there is nothing to tell it apart by, and nothing to divide by."""
    representatives, content, _, _ = stream(1)
    assert make_retriever(policy).score(query_of(content[:, :, 0]), candidates(representatives)).tolist() == [0.0]


@pytest.mark.parametrize("policy", ["centred", "maxsim", "rekv"])
def test_layers_choose_alone_or_together(policy):
    """Layers asked alone may choose different blocks; asked together they agree on one score."""
    representatives, content, _, _ = stream(20, common=1.0)
    blocks, retriever = candidates(representatives), make_retriever(policy)
    wanted = torch.stack([content[0, :, 4], content[1, :, 13]])
    layers = [slice(i, i + 1) for i in range(LAYERS)]
    alone = [retriever.score(query_of(wanted[layer]), blocks.of_layers(layer)) for layer in layers]
    assert [int(scores.argmax()) for scores in alone] == [4, 13]
    together = {"rekv": alone[0] + alone[1], "centred": (alone[0] + alone[1]) / 2, "maxsim": (alone[0] + alone[1]) / 2}
    assert torch.allclose(retriever.score(query_of(wanted), blocks), together[policy], atol=1e-5)


# The mean key ---------------------------------------------------------------------------------------------------------


def test_the_mean_key_is_weighted_by_frames():
    representatives, weights = stream(6)[0], torch.tensor([1.0, 4, 2, 8, 1, 5])
    expected = sum(representatives[:, :, i].double() * weights[i].double() for i in range(6)) / 21
    mean = Kept.of(representatives).mean(weights)
    assert mean.shape == (LAYERS, HEADS, 1, DIM)
    assert mean.dtype == torch.float32
    assert torch.allclose(mean[:, :, 0].double(), expected, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_the_mean_key_of_hardly_anything(count):
    representatives = stream(3)[0][:, :, :count]
    mean = Kept.of(representatives).mean(torch.full((count,), 3.0))
    assert torch.allclose(mean, representatives.float().sum(dim=2, keepdim=True), atol=1e-6)


def test_blocks_that_stand_for_no_frames_have_no_mean():
    assert torch.equal(Kept.of(stream(2)[0]).mean(torch.zeros(2)), NO_MEAN)


def test_merging_does_not_move_the_mean():
    held = [random_block(i, block_id=i, weight=weight) for i, weight in enumerate((3, 1, 6))]

    def mean(blocks):
        keys = torch.stack([block.representative for block in blocks], dim=2)
        return Kept.of(keys).mean(torch.tensor([block.meta.weight for block in blocks]))

    merged = condense(held[:2], block_id=9, level=GIST, max_vision_tokens=2)
    assert torch.allclose(mean([merged, held[2]]), mean(held), atol=1e-3)
    assert not torch.allclose(mean(held[1:]), mean(held), atol=1e-2), "leaving one out must move it"

"""The policies, each against a plain loop; what they keep of blocks, through demotion, merging, disk and the past."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
from blocks import SHAPE, make_block, raw
from streams import MIB, ListSource, altered, feature_frames, pump_all, small_config, watched
from test_condense import random_block
from test_session import asked, persistent, told
from torch import Tensor

from vstream.memory import exact_search
from vstream.memory.block import Block, BlockMeta, TokenKind
from vstream.memory.columns import COLUMNS, Rows
from vstream.memory.levels import DIGEST, GIST, SINK
from vstream.memory.policies import RETRIEVERS, Embedding, Oracle, Prototypes, Quest, make_retriever, telling
from vstream.memory.records import StoredExtra, decode_meta, encode_meta
from vstream.memory.representatives import Kept
from vstream.memory.retriever import Candidates, Query
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.stream_memory import StreamMemory

LAYERS, HEADS, DIM, EMBED = 3, 2, 16, 24
KEEPING = sorted(name for name in RETRIEVERS if make_retriever(name).extra_size(1, SHAPE, EMBED))
ALONE = sorted(name for name in RETRIEVERS if not make_retriever(name).per_layer)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randn(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def rows(count: int, tokens: int = 4) -> Rows:
    """Blocks of 4 s each, one after the other, whose ids are 100, 101, ..."""
    found = np.zeros(count, COLUMNS)
    found["id"], found["num_tokens"], found["weight"] = np.arange(count) + 100, tokens, 4
    found["start_seconds"], found["end_seconds"] = np.arange(count) * 4.0, np.arange(count) * 4.0 + 3
    return found


def query(seed: int = 0, words: int = 3) -> Query:
    return Query(
        randn(seed, LAYERS, HEADS, DIM), randn(seed + 1, LAYERS, HEADS, words, DIM), (), randn(9, words, EMBED)
    )


def blocks_of(policy: str, count: int, *, budget: int = 8, seed: int = 5, scenes: int = 1) -> tuple[Candidates, Tensor]:
    """Candidates whose kv [B, L, 2, K, N, D] are random around a look that `scenes` neighbours share."""
    looks = randn(seed, -(-count // scenes), LAYERS, 2, HEADS, 1, DIM).repeat_interleave(scenes, dim=0)[:count]
    kv = looks + (0.3 if scenes > 1 else 1.0) * randn(seed + 1, count, LAYERS, 2, HEADS, 6, DIM)
    kinds, retriever = torch.zeros(6, dtype=torch.uint8), make_retriever(policy)
    keys = kv[:, :, 0].mean(dim=3).permute(1, 2, 0, 3).half()
    made = [retriever.describe(one, kinds, embeds=randn(seed + i, 6, EMBED)) for i, one in enumerate(kv)]
    extra = torch.stack(made, dim=2) if made[0] is not None else None
    weights = torch.ones(count)
    kept = None if extra is None else Kept.of(extra)
    means = Kept.of(keys).mean(weights), None if kept is None else kept.mean(weights)
    return Candidates(rows(count), Kept.of(keys), means[0], kept, means[1], budget), kv


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.cosine_similarity(left, right, dim=0))


# Scores ---------------------------------------------------------------------------------------------------------------


def test_quest_against_a_loop() -> None:
    blocks, kv = blocks_of("quest", 7)
    asks, scores = query(), make_retriever("quest").score(query(), blocks)
    for b in range(7):
        total = 0.0
        for layer in range(LAYERS):
            for head in range(HEADS):
                for channel in range(DIM):
                    column, q = kv[b, layer, 0, head, :, channel], float(asks.mean[layer, head, channel])
                    total += max(q * float(column.min()), q * float(column.max()))
        assert float(scores[b]) == pytest.approx(total, abs=0.05)  # bounds are kept in float16


def test_quest_is_never_below_any_token_of_the_block() -> None:
    """The bound holds for every token; that of the mean key does not, or the test would say nothing."""
    blocks, kv = blocks_of("quest", 20)
    asks = query(3)
    tokens = torch.einsum("lkd,blknd->bn", asks.mean, kv[:, :, 0]).amax(dim=1)
    assert (make_retriever("quest").score(asks, blocks) >= tokens - 0.05).all()
    assert (make_retriever("rekv").score(asks, blocks) < tokens).any()


def test_prototypes_against_a_loop() -> None:
    blocks, kv = blocks_of("prototypes", 5)
    asks, scores = query(), make_retriever("prototypes").score(query(), blocks)
    for b in range(5):
        best = -math.inf
        for run in ([0], [1, 2], [3], [4, 5]):  # six tokens in four runs
            key = kv[b, :, 0][:, :, run].mean(dim=2) - blocks.mean[:, :, 0]
            for word in range(3):
                pairs = [
                    (asks.word_keys[layer, k, word], key[layer, k]) for layer in range(LAYERS) for k in range(HEADS)
                ]
                best = max(best, sum(cosine(*pair) for pair in pairs) / len(pairs))
        assert float(scores[b]) == pytest.approx(best, abs=2e-3)


def test_a_prototype_shows_what_the_mean_hides() -> None:
    """One frame of four looks like the question, another block's mean a little more so."""
    kv = 0.1 * randn(0, 30, LAYERS, 2, HEADS, 4, DIM)
    wanted = randn(1, LAYERS, HEADS, DIM)
    kv[12, :, 0, :, 2] += wanted
    kv[12, :, 0, :, 3] -= 0.9 * wanted
    kv[4, :, 0] += 0.05 * wanted[:, :, None]
    kinds = torch.zeros(4, dtype=torch.uint8)
    extra = torch.stack([Prototypes().describe(one, kinds) for one in kv], dim=2)
    keys = kv[:, :, 0].mean(dim=3).permute(1, 2, 0, 3).half()
    mean = torch.zeros(LAYERS, HEADS, 1, DIM)
    blocks = Candidates(rows(30), Kept.of(keys), mean, Kept.of(extra), budget_tokens=4)
    asks = Query(wanted, wanted[:, :, None])
    assert make_retriever("prototypes").select(asks, blocks).ids == (112,)
    assert make_retriever("maxsim").select(asks, blocks).ids != (112,)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
def test_prototypes_of_any_number_of_tokens(tokens: int) -> None:
    """Every token has its place in a run; few tokens stand in several."""
    kv = randn(tokens, LAYERS, 2, HEADS, tokens, DIM)
    found = Prototypes().describe(kv, torch.zeros(tokens, dtype=torch.uint8)).chunk(4, dim=1)
    for run, key in enumerate(found):
        first = tokens * run // 4
        members = range(first, max(tokens * (run + 1) // 4, first + 1))
        assert torch.allclose(key.float(), kv[:, 0][:, :, list(members)].mean(dim=2), atol=2e-3)


def test_embedding_against_a_loop() -> None:
    blocks, _ = blocks_of("embedding", 6)
    scores, seen = (
        make_retriever("embedding").score(query(), blocks),
        [randn(5 + i, 6, EMBED).mean(0) for i in range(6)],
    )
    mean = torch.stack(seen).mean(dim=0)
    cosines = [[cosine(word, seen[b] - mean) for b in range(6)] for word in query().embeds]
    weights = [((max(row) - sum(row) / 6) / stdev(row)) ** 2 for row in cosines]
    for b in range(6):
        expected = sum(weight * row[b] for weight, row in zip(weights, cosines, strict=True)) / sum(weights)
        assert float(scores[b]) == pytest.approx(expected, abs=5e-3)


def test_words_that_tell_nothing_hardly_count_for_an_embedding() -> None:
    """Among forty blocks one shows the rare word, all are about as near to the usual ones."""
    cosines = 0.1 * randn(0, 5, 40).clamp(-2, 2)
    cosines[3, 17] = 0.9
    assert int(telling(cosines).argmax()) == 17
    assert int(cosines[[0, 1, 2, 4]].sum(dim=0).argmax()) != 17
    even = telling(0.1 * randn(0, 5, 40))
    assert float(even.amax()) < 0.2


@pytest.mark.parametrize("count", [1, 2])
def test_among_few_blocks_no_word_stands_out(count: int) -> None:
    cosines = randn(0, 3, count)
    assert torch.allclose(telling(cosines), cosines.mean(dim=0))


def test_hierarchical_against_a_loop() -> None:
    """Stretches by their mean, the best opened until they hold four budgets, those inside by their own key."""
    count, budget = 30, 8
    blocks, _ = blocks_of("hierarchical", count, budget=budget)
    asks, plain = query(), make_retriever("maxsim")
    alone = plain.score(asks, blocks)
    parts = np.array_split(np.arange(count), 5)
    coarse = []
    for part in parts:
        key = blocks.keys[:, :, part].float().mean(dim=2, keepdim=True)
        coarse.append(float(plain.score(asks, Candidates(blocks.rows[:1], Kept.of(key), blocks.mean))))
    opened, held = set(), 0
    for place in sorted(range(5), key=lambda i: -coarse[i]):
        opened.add(place)
        held += 4 * len(parts[place])
        if held >= 4 * budget:
            break
    scores = make_retriever("hierarchical").score(asks, blocks)
    for place, part in enumerate(parts):
        for b in part:
            expected = float(alone[b]) if place in opened else coarse[place] - 2
            assert float(scores[b]) == pytest.approx(expected, abs=1e-5)
    assert 0 < len(opened) < 5, "some are opened, others not"


@pytest.mark.parametrize("needle", [3, 40, 96])
def test_hierarchical_finds_a_scene(needle: int) -> None:
    blocks, _ = blocks_of("hierarchical", 100, budget=40, scenes=10)
    word = blocks.keys[:, :, needle].float()
    ids = make_retriever("hierarchical").select(Query(word, word[:, :, None]), blocks).ids
    scene = range(needle // 10 * 10, needle // 10 * 10 + 10)
    assert set(ids) == {100 + b for b in scene}


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_uniform_is_even_in_time(count: int) -> None:
    """Gaps between chosen blocks are all of one size, to within a block."""
    nothing = torch.zeros(1, 1, 200, 4)
    blocks = Candidates(rows(200), Kept.of(nothing.half()), nothing[:, :, :1], budget_tokens=4 * count)
    places = np.array(make_retriever("uniform").select(query(), blocks).ids) - 100
    assert len(places) == count
    assert np.ptp(np.diff(places)) <= 1 if count > 1 else places[0] in (99, 100)


def test_uniform_goes_by_time_and_not_by_number() -> None:
    """Half of the blocks lie in the first tenth of the time."""
    found = rows(200)
    found["start_seconds"] = np.concatenate([np.linspace(0, 80, 100), np.linspace(81, 800, 100)])
    blocks = Candidates(found, Kept.of(torch.zeros(1, 1, 200, 4).half()), torch.zeros(1, 1, 1, 4), budget_tokens=40)
    assert sum(block_id < 200 for block_id in make_retriever("uniform").select(query(), blocks).ids) == 1


def test_recent_is_the_newest() -> None:
    blocks, _ = blocks_of("recent", 9, budget=12)
    assert make_retriever("recent").select(query(), blocks).ids == (106, 107, 108)


def test_oracle_brings_back_the_evidence() -> None:
    """Spans are as (start, end) with the end left out; a named moment counts for nothing."""
    blocks, _ = blocks_of("oracle", 50, budget=12)
    oracle = Oracle()
    oracle.evidence = ((40.0, 44.0), (81.0, 82.0))
    asks = Query(query().mean, query().word_keys, moments=(160.0,))
    for _ in range(20):
        assert {110, 120} <= set(oracle.select(asks, blocks).ids)
    oracle.evidence = ()
    blind = [oracle.select(asks, blocks).ids for _ in range(20)]
    assert len(set(blind)) > 10
    assert not all({110, 120} & set(ids) for ids in blind)
    again = Oracle()
    again.evidence = ((40.0, 44.0), (81.0, 82.0))
    first = [again.select(asks, blocks).ids for _ in range(20)]
    again.evidence = ()
    assert [again.select(asks, blocks).ids for _ in range(20)] == blind, "seeded"
    assert len(first) == 20


@pytest.mark.parametrize("policy", sorted(RETRIEVERS))
def test_the_same_input_gives_the_same_choice(policy: str) -> None:
    blocks, _ = blocks_of(policy, 60, budget=40)
    first, second = (make_retriever(policy).select(query(), blocks) for _ in range(2))
    assert first.ids == second.ids
    assert torch.equal(first.scores, second.scores)
    assert list(first.ids) == sorted(set(first.ids))
    assert len(first.ids) == 10


@pytest.mark.parametrize("policy", ["quest", "rekv"])
def test_equal_blocks_go_to_the_earlier(policy: str) -> None:
    """Whole numbers, so that sums are exact wherever a block lies."""
    blocks, _ = blocks_of(policy, 6)
    same = blocks.at(np.array([4, 1, 4, 4, 4, 4]))
    extra = None if same.kept_extra is None else Kept.of(same.extra.round())
    same = Candidates(rows(6), Kept.of((4 * same.keys).round()), same.mean, extra, same.extra_mean, 16)
    asks = Query((4 * query().mean).round(), query().word_keys)
    selection = make_retriever(policy).select(asks, same)
    assert len(set(selection.scores.tolist())) == 2
    first = 1 if selection.scores[1] > selection.scores[0] else 4
    assert selection.ids == tuple(100 + i for i in sorted({0, 2, 3, first}))


@pytest.mark.parametrize("policy", ["quest", "prototypes", "hierarchical"])
def test_a_layer_may_choose_alone(policy: str) -> None:
    """A layer's own score is that of a stream that has no other."""
    blocks, kv = blocks_of(policy, 8)
    asks, retriever = query(), make_retriever(policy)
    for layer in range(LAYERS):
        one = slice(layer, layer + 1)
        asked_alone = Query(asks.mean[one], asks.word_keys[one])
        kept = [retriever.describe(each[one], torch.zeros(6, dtype=torch.uint8)) for each in kv]
        extra = None if kept[0] is None else Kept.of(torch.stack(kept, dim=2))
        keys = Kept.of(blocks.keys[one])
        apart = Candidates(blocks.rows, keys, blocks.common[one], extra, None, blocks.budget_tokens)
        assert torch.equal(retriever.score(asked_alone, apart), retriever.score(asked_alone, blocks.of_layers(one)))


@pytest.mark.parametrize("policy", sorted(set(RETRIEVERS) - {"oracle"}))
def test_ten_thousand_blocks_are_scored_in_milliseconds(policy: str) -> None:
    """Far below what any loop over blocks would take, on a busy machine too."""
    blocks, _ = blocks_of(policy, 100, budget=256)
    many = blocks.at(np.tile(np.arange(100), 100))
    many = replace(many, rows=rows(10_000))
    retriever, asks, took = make_retriever(policy, neighbours=1), query(), []
    for _ in range(5):
        start = time.perf_counter()
        retriever.select(asks, many)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1


# FAISS ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (12, 3000), (40, 500)])
def test_faiss_gives_the_same_ids_and_scores(size: tuple[int, int]) -> None:
    """Of whole numbers, whose sums are exact, the same bits; of others, what float32 rounds."""
    faiss = pytest.importorskip("faiss")
    queries, vectors = randn(1, size[0], 64), randn(2, size[1], 64)
    ours, theirs = exact_search.by_torch(queries, vectors), exact_search.by_faiss(faiss, queries, vectors)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, exact_search.by_faiss(faiss, queries + 0.01, vectors), atol=1e-4)
    whole, others = (4 * queries).round(), (4 * vectors).round()
    assert torch.equal(exact_search.by_torch(whole, others), exact_search.by_faiss(faiss, whole, others))


def test_the_policy_chooses_alike_with_faiss_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    blocks, _ = blocks_of("embedding", 300, budget=80)
    calls, by_faiss = [], exact_search.by_faiss
    monkeypatch.setattr(exact_search, "by_faiss", lambda *args: (calls.append(1), by_faiss(*args))[1])
    with_it = make_retriever("embedding").select(query(), blocks)
    assert calls
    monkeypatch.setattr(exact_search, "installed_faiss", lambda: None)
    without = make_retriever("embedding").select(query(), blocks)
    assert with_it.ids == without.ids
    assert torch.allclose(with_it.scores, without.scores, atol=1e-5)


# What is kept of a block ----------------------------------------------------------------------------------------------


def test_only_vision_counts_where_there_is_any() -> None:
    kv, kinds = randn(0, LAYERS, 2, HEADS, 6, DIM), torch.tensor([1, 0, 0, 2, 0, 0], dtype=torch.uint8)
    seen, embeds = kinds == TokenKind.VISION, randn(1, 6, EMBED)
    for policy in (Quest(), Prototypes(), Embedding()):
        alone = policy.describe(kv[:, :, :, seen], kinds[seen], embeds=embeds[seen])
        assert torch.equal(policy.describe(kv, kinds, embeds=embeds), alone)
        text = policy.describe(kv, torch.ones_like(kinds), embeds=embeds)
        assert torch.equal(text, policy.describe(kv, torch.zeros_like(kinds), embeds=embeds))
        assert not torch.equal(text, alone)


def test_an_embedding_is_merged_by_weight_and_not_made_of_keys() -> None:
    parents = []
    for i, weight in enumerate((3.0, 1.0)):
        block = random_block(i, block_id=i, weight=weight)
        parents.append(Block(block.meta, block.kv, block.representative, extra=randn(i, 1, 1, EMBED).half()))
    merged = Embedding().describe(parents[0].kv, parents[0].meta.kinds, parents=parents)
    first, second = (block.extra.float() for block in parents)
    assert torch.allclose(merged.float(), 0.75 * first + 0.25 * second, atol=2e-3)
    assert Embedding().describe(parents[0].kv, parents[0].meta.kinds) is None


def stored(session: Session) -> dict[int, tuple[BlockMeta, Tensor, Tensor | None]]:
    """Every block with its kv and what is kept of it."""
    store = session.memory.store
    kept = {meta.id: None if store.extras is None else store.extras.rows([meta.id])[:, :, 0] for meta in store.metas()}
    return {meta.id: (meta, store.gather([meta.id]), kept[meta.id]) for meta in store.metas()}


def condensed(policy: str, **settings: Any) -> Session:
    """A stream that has filled its memory: demoted and merged blocks are in it."""
    session = watched(RandomLlama(), feature_frames(300), policy=policy, host_bytes=MIB, gist_share=0.3, **settings)
    levels = {meta.level for meta in session.memory.store.metas()}
    assert {DIGEST, GIST} <= levels
    assert session.memory.moved["merged"] > 0
    session.memory.store.check_integrity(deep=True)
    return session


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["shared", "per-layer"])
@pytest.mark.parametrize("policy", ["quest", "prototypes"])
def test_bounds_and_prototypes_are_those_of_the_tokens_that_are_left(policy: str, selection: str) -> None:
    session = condensed(policy, selection=selection)
    extra = session.memory.store.shape.extra
    assert extra is not None
    assert extra.size[0] == (1 if (policy, selection) == ("prototypes", "shared") else session.adapter.num_layers)
    for meta, kv, kept in stored(session).values():
        assert torch.equal(kept, extra.describe(kv[: extra.size[0]], meta.kinds)), meta


def test_merging_does_not_move_the_mean_embedding() -> None:
    found = [(meta, kept) for meta, _, kept in stored(condensed("embedding")).values() if meta.level > SINK]
    weights = torch.tensor([meta.weight for meta, _ in found])
    mean = Kept.of(torch.stack([kept for _, kept in found], dim=2)).mean(weights)[0, 0, 0]
    frames = torch.stack([torch.from_numpy(frame.image) for frame in feature_frames(300)])
    expected = frames.mean(dim=(0, 1))
    assert torch.allclose(mean, expected, atol=2e-3)
    assert not torch.allclose(frames[:150].mean(dim=(0, 1)), expected, atol=2e-3)


@pytest.mark.slow
def test_the_bytes_are_counted() -> None:
    """A memory of the same budget holds fewer blocks, and neither exceeds it; the default keeps nothing."""
    plain, quest = condensed("maxsim"), condensed("quest")
    assert plain.memory.store.extras is None
    shape = quest.memory.store.shape
    assert shape.representative_bytes == 3 * plain.memory.store.shape.representative_bytes
    table = quest.memory.store.extras
    assert table is not None
    assert (
        sum(one.nbytes for one in quest.memory.store.tables) == quest.memory.store.representatives.nbytes + table.nbytes
    )


def test_a_record_without_extras_is_what_it_always_was() -> None:
    """Not a byte more for a policy that keeps nothing; and a record with one comes back bit for bit."""
    block, extra = make_block(3), StoredExtra("quest", randn(0, 2, 4, 16).half())
    plain = encode_meta(block.meta, block.representative, 7)
    assert b"extra" not in plain
    assert decode_meta(plain)[3] is None
    meta, representative, picture_bytes, found = decode_meta(encode_meta(block.meta, block.representative, 7, extra))
    assert (meta.id, picture_bytes, found.policy) == (3, 7, "quest")
    assert raw(found.tensor) == raw(extra.tensor)
    assert raw(representative) == raw(block.representative)


# On disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", KEEPING)
def test_what_is_kept_comes_back_from_disk(policy: str, tmp_path: Path) -> None:
    frames = feature_frames(30)
    pump_all(session := persistent(tmp_path / "memory", frames, policy=policy))
    before, answer = stored(session), told(asked(session))
    session.close()
    pump_all(again := persistent(tmp_path / "memory", frames, policy=policy))
    again.memory.store.check_integrity(deep=True)
    after = stored(again)
    assert before.keys() == after.keys()
    assert all(raw(before[block_id][2]) == raw(after[block_id][2]) for block_id in before)
    assert told(asked(again)) == answer


@pytest.mark.parametrize("first", ["maxsim", "quest", "prototypes", "embedding"])
@pytest.mark.parametrize("then", ["maxsim", "quest", "prototypes"])
def test_another_policy_takes_a_memory_over(first: str, then: str, tmp_path: Path) -> None:
    """What it needs is made of the stored keys, to the bit; watching goes on, and all bytes are counted."""
    frames = feature_frames(60)
    pump_all(session := persistent(tmp_path / "memory", frames[:30], policy=first))
    session.close()
    pump_all(resumed := persistent(tmp_path / "memory", frames, policy=then))
    resumed.memory.store.check_integrity(deep=True)
    assert told(asked(resumed)) == told(asked(watched(RandomLlama(), frames, policy=then)))
    resumed.close()


def test_an_embedding_cannot_be_made_of_keys(tmp_path: Path) -> None:
    frames = feature_frames(12)
    pump_all(session := persistent(tmp_path / "memory", frames))
    session.close()
    with pytest.raises(ValueError, match="policy='embedding' needs of every block what only it keeps"):
        persistent(tmp_path / "memory", frames, policy="embedding")
    pump_all(again := persistent(tmp_path / "memory", frames))
    assert asked(again).text() is not None, "nothing was lost by the refusal"


def test_blocks_that_another_policy_made_larger_are_counted_as_they_are(tmp_path: Path) -> None:
    """A memory made with quest and searched with maxsim still has quest's pages on disk."""
    pump_all(session := persistent(tmp_path / "memory", feature_frames(30), policy="quest"))
    used = session.memory.store.used_bytes
    session.close()
    plain = persistent(tmp_path / "memory", feature_frames(30))
    fresh = watched(RandomLlama(), feature_frames(30), disk_bytes=64 * MIB)
    assert fresh.memory.store.used_bytes <= plain.memory.store.used_bytes == used


# Questions ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", sorted(RETRIEVERS))
def test_what_comes_later_has_no_part_in_the_past(policy: str) -> None:
    """Asked about 20.0 s, in the middle of a block: later frames do not matter, earlier ones do."""
    frames = feature_frames(60)
    settings = {"policy": policy, "retrieve_tokens": 32, "window_tokens": 48}
    answer = told(asked(watched(RandomLlama(), frames, **settings), at=20.0))
    for later in (21, 40, 59):
        assert told(asked(watched(RandomLlama(), altered(frames, later), **settings), at=20.0)) == answer
    assert told(asked(watched(RandomLlama(), altered(frames, 20), **settings), at=20.0)) != answer


@pytest.mark.parametrize("policy", ALONE)
def test_one_opinion_is_not_for_every_layer(policy: str) -> None:
    with pytest.raises(ValueError, match=f"policy='{policy}' has one opinion for all layers; use selection='shared'"):
        StreamMemory(RandomLlama(), small_config(policy=policy, selection="per-layer"), source_name="none")


@pytest.mark.parametrize("policy", sorted(set(RETRIEVERS) - set(ALONE)))
def test_every_other_policy_may_be_each_layers_own(policy: str) -> None:
    session = watched(RandomLlama(), feature_frames(60), policy=policy, selection="per-layer")
    answer = asked(session)
    assert answer.error is None
    assert any(one.level == "detail" for one in answer.evidence)


@pytest.mark.parametrize("policy", sorted(RETRIEVERS))
def test_frames_not_yet_encoded_are_scored_too(policy: str) -> None:
    session = Session(RandomLlama(), ListSource(feature_frames(31)), small_config(policy=policy))
    asked_at = session.ask("what happened?", at=30.0)
    pump_all(session)
    assert asked_at.error is None
    assert all(math.isfinite(one.score) for one in asked_at.evidence)


def test_neighbours_are_brought_along() -> None:
    """The best block's two neighbours come before the second best."""

    def chosen(neighbours: int) -> tuple[list[int], int]:
        """Places in time of the detail blocks brought back, and of the best."""
        settings = {"retrieve_tokens": 80, "gist_tokens": 0, "retrieve_neighbours": neighbours}
        session, found = watched(RandomLlama(), feature_frames(200), **settings), []
        select = session.memory.retriever.select
        session.memory.retriever.select = lambda *args: (
            found.append((args[1].rows["id"], select(*args))) or found[-1][1]
        )
        assert asked(session).error is None
        ids, selection = max(found, key=lambda pair: len(pair[1].ids))
        return np.flatnonzero(np.isin(ids, selection.ids)).tolist(), int(selection.scores.argmax())

    (alone, best), (together, same) = chosen(0), chosen(1)
    assert best == same
    assert together == [best - 1, best, best + 1]
    assert alone != together


@pytest.mark.parametrize("policy", ["quest", "prototypes"])
def test_a_reader_may_ask_by_another_policy_than_the_writers(policy: str, tmp_path: Path) -> None:
    """What it needs is made of each commit's keys as it comes."""
    frames = feature_frames(40)
    pump_all(first := persistent(tmp_path / "memory", frames[:20]))
    first.close()
    reader = Session(RandomLlama(), None, small_config(policy=policy), folder=tmp_path / "memory")
    assert reader.memory.last_seconds == 19.0
    pump_all(second := persistent(tmp_path / "memory", frames))
    answer = told(asked(reader))
    assert reader.memory.last_seconds == 39.0
    extra = reader.memory.store.shape.extra
    assert extra is not None
    for meta, kv, kept in stored(reader).values():
        assert torch.equal(kept, extra.describe(kv[: extra.size[0]], meta.kinds))
    second.close()
    assert answer == told(asked(watched(RandomLlama(), frames, policy=policy)))
    reader.close()

"""Decoding: the tokens are the model's, the text that was shown is never taken back."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streams import feature_frames
from transformers import DynamicCache, LlamaForCausalLM

from vstream.answer import Answer
from vstream.batch import RunningAnswer
from vstream.config import DecodeOptions
from vstream.decoder import Decoding, cut_at_stop, held_back, sample
from vstream.models.random import EOS, RandomLlama

NEVER = 300  # a token id without text


class Script:
    """An adapter whose model says given token ids, one after the other.

    Attributes:
        positions: where each token that went through the decoder was placed.
    """

    eos_ids = frozenset({EOS, EOS + 1})
    device = torch.device("cpu")

    def __init__(self, ids):
        self.ids = list(ids)
        self.positions = []
        self.heads = 0

    def logits(self, step):
        return torch.nn.functional.one_hot(torch.tensor(self.ids[step]), NEVER + 1).float()

    def embed(self, token_ids):
        assert token_ids.tolist() == [self.ids[len(self.positions)]], "the token said last is the one that goes in"
        return token_ids[:, None].float()

    def forward(self, embeds, positions, cache):
        assert embeds.shape == (1, 1)
        self.positions.append(positions[:, 0].tolist())
        return embeds

    def head(self, hidden):
        self.heads += 1
        return self.logits(self.heads)

    def text(self, token_ids):
        return bytes(i for i in token_ids if i < EOS).decode(errors="replace")


def said(ids, **options):
    """A script of token ids, decoded to its end: the decoding, its pieces, and the script."""
    script = Script(ids)
    decoding = Decoding(script, None, script.logits(0), torch.tensor([7]), DecodeOptions(**options))
    pieces = []
    while decoding.finish_reason is None:
        pieces.append(decoding.step())
    return decoding, pieces, script


def text_ids(text):
    return list(text.encode())


# The model's own tokens -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def decoding_of(adapter, embeds, **options):
    """A decoding behind a prompt [N, E], in a cache of transformers' own."""
    cache, positions = DynamicCache(), torch.arange(len(embeds))[None]
    hidden = adapter.forward(embeds, positions, cache)
    cursor = torch.tensor([len(embeds)])
    return Decoding(adapter, cache, adapter.head(hidden[-1]), cursor, DecodeOptions(**options))


@torch.inference_mode()
def all_ids(decoding):
    while decoding.finish_reason is None:
        decoding.step()
    return decoding.token_ids


def prompt(adapter, seed=0):
    frames = feature_frames(4, seed=seed)
    spans = [adapter.sink(), adapter.layout(frames, adapter.encode(frames)), adapter.question("what?").span]
    return torch.cat([span.embeds for span in spans])


def generated(adapter, embeds, count):
    """Token ids by transformers' `generate`, the end token left out."""
    model = LlamaForCausalLM(adapter.config).eval()
    model.model, model.lm_head = adapter.decoder, adapter.head
    ids = model.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return [i for i in ids[0].tolist() if i != EOS]


@torch.inference_mode()
def recomputed(adapter, embeds, count):
    """Token ids by a full forward pass for every token, with no cache at all."""
    ids = []
    for _ in range(count):
        positions = torch.arange(len(embeds))[None]
        hidden = adapter.decoder(inputs_embeds=embeds[None], position_ids=positions, use_cache=False).last_hidden_state
        ids.append(int(adapter.head(hidden[0, -1]).argmax()))
        if ids[-1] == EOS:
            return ids[:-1]
        embeds = torch.cat([embeds, adapter.embed(torch.tensor(ids[-1:]))])
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_the_models_own(seed):
    adapter = RandomLlama(seed=seed, dtype=torch.float64)
    embeds = prompt(adapter, seed)
    ids = all_ids(decoding_of(adapter, embeds, max_tokens=24))
    assert ids == recomputed(adapter, embeds, 24)
    assert ids == generated(adapter, embeds, 24)


def test_greedy_depends_on_the_prompt():
    adapter = RandomLlama(dtype=torch.float64)
    answers = {tuple(all_ids(decoding_of(adapter, prompt(adapter, seed), max_tokens=24))) for seed in range(4)}
    assert len(answers) == 4


def test_a_tiny_nucleus_is_greedy():
    adapter = RandomLlama()
    embeds = prompt(adapter)
    greedy = all_ids(decoding_of(adapter, embeds, max_tokens=16))
    assert all_ids(decoding_of(adapter, embeds, max_tokens=16, temperature=3.0, top_p=1e-9)) == greedy
    assert all_ids(decoding_of(adapter, embeds, max_tokens=16, temperature=1e-300)) == greedy
    assert all_ids(decoding_of(adapter, embeds, max_tokens=16, temperature=3.0)) != greedy


def test_the_seed_decides_what_is_sampled():
    adapter = RandomLlama()
    embeds = prompt(adapter)
    first, again, other = (
        all_ids(decoding_of(adapter, embeds, max_tokens=16, temperature=2.0, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_sampling_leaves_the_programs_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    all_ids(decoding_of(RandomLlama(), prompt(RandomLlama()), max_tokens=4, temperature=2.0))
    assert torch.equal(torch.rand(3), expected)


LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0, -2.0])


def counts_of(draws, **options):
    """How often each token of `LOGITS` is drawn."""
    generator, chosen = torch.Generator().manual_seed(0), DecodeOptions(**options)
    drawn = torch.tensor([sample(LOGITS, chosen, generator) for _ in range(draws)])
    return torch.bincount(drawn, minlength=len(LOGITS)).double()


def chi_square(counts, probabilities):
    expected = probabilities.double() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_samples_follow_the_softmax(temperature):
    counts = counts_of(4000, temperature=temperature)
    assert chi_square(counts, torch.softmax(LOGITS / temperature, dim=0)) < 20.5  # p = 0.001 at 5 degrees of freedom
    other = torch.softmax(LOGITS / temperature / 1.5, dim=0)
    assert chi_square(counts, other) > 50, "this must tell temperatures apart"


def test_a_nucleus_is_renormalised():
    """0.8 of the probability is tokens 1 and 3 and, as the one that crosses it, 0."""
    probabilities = torch.softmax(LOGITS, dim=0)
    assert 0.7 < float(probabilities[[1, 3]].sum()) < 0.8 < float(probabilities[[1, 3, 0]].sum())
    counts = counts_of(4000, temperature=1.0, top_p=0.8)
    assert counts[[2, 4, 5]].tolist() == [0, 0, 0]
    kept = probabilities[[0, 1, 3]]
    assert chi_square(counts[[0, 1, 3]], kept / kept.sum()) < 13.8  # p = 0.001 at 2 degrees of freedom


def test_equal_logits_are_drawn_evenly():
    generator, options = torch.Generator().manual_seed(1), DecodeOptions(temperature=1.0)
    drawn = torch.tensor([sample(torch.zeros(4), options, generator) for _ in range(2000)])
    assert chi_square(torch.bincount(drawn, minlength=4).double(), torch.full((4,), 0.25)) < 16.3


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_temperature_gives_a_token(temperature, dtype):
    logits = (1000 * LOGITS).to(dtype)
    token = sample(logits, DecodeOptions(temperature=temperature), torch.Generator().manual_seed(0))
    assert token == 1 if temperature < 1 else token in range(len(LOGITS))


# When it ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [EOS, EOS + 1])
def test_an_end_token_first_is_an_empty_answer(end):
    decoding, pieces, script = said([end], max_tokens=5)
    assert (decoding.finish_reason, pieces, decoding.token_ids) == ("stop", [""], [])
    assert script.positions == []


def test_an_end_token_shows_what_was_held_back():
    decoding, pieces, _ = said([*text_ids("to be EN"), EOS], stop=("END",))
    assert (decoding.finish_reason, "".join(pieces)) == ("stop", "to be EN")
    assert EOS not in decoding.token_ids


def test_one_token_needs_no_further_forward():
    decoding, pieces, script = said(text_ids("yes"), max_tokens=1)
    assert (decoding.finish_reason, pieces, decoding.token_ids) == ("length", ["y"], text_ids("y"))
    assert script.positions == []


def test_tokens_are_placed_one_after_the_other():
    _, _, script = said(text_ids("abcd"), max_tokens=4)
    assert script.positions == [[7], [8], [9]]


def test_every_axis_advances():
    script = Script(text_ids("abc"))
    decoding = Decoding(script, None, script.logits(0), torch.tensor([5, 9, 2]), DecodeOptions(max_tokens=3))
    while decoding.finish_reason is None:
        decoding.step()
    assert script.positions == [[5, 9, 2], [6, 10, 3]]


def test_no_step_after_the_end():
    decoding, _, _ = said(text_ids("a"), max_tokens=1)
    with pytest.raises(AssertionError, match=r"over \(length\)"):
        decoding.step()


def test_the_length_shows_what_was_held_back():
    decoding, pieces, _ = said(text_ids("ab EN"), max_tokens=5, stop=("END",))
    assert (decoding.finish_reason, "".join(pieces)) == ("length", "ab EN")


def test_a_stop_at_the_last_token_is_a_stop():
    decoding, pieces, _ = said(text_ids("ab END"), max_tokens=6, stop=("END",))
    assert (decoding.finish_reason, "".join(pieces)) == ("stop", "ab ")


# What is shown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two END three", ("END",), "one two "),
        ("EEND", ("END",), "E"),
        ("ENEND.", ("END",), "EN"),
        ("aab aac", ("aac",), "aab "),
        ("ab", ("b", "abc"), "a"),
        ("xabcd", ("abcd", "bc"), "xa"),
        ("caf\u00e9!", ("\u00e9",), "caf"),
        ("so \u00e9t\u00e9", (" \u00e9t",), "so"),
        ("smile \U0001f600 now", ("\U0001f600 n",), "smile "),
        ("  \n three", ("three",), ""),
        ("END", ("END",), ""),
    ],
)
def test_only_the_text_before_a_stop_is_shown(text, stops, shown):
    decoding, pieces, _ = said([*text_ids(text), NEVER], stop=stops)
    assert (decoding.finish_reason, "".join(pieces)) == ("stop", shown)


def test_text_is_shown_as_soon_as_it_is_certain():
    _, pieces, _ = said([*text_ids("a EN b"), EOS], stop=("END",))
    assert pieces == ["a", " ", "", "", "EN ", "b", ""]


def test_a_character_is_shown_when_it_is_whole():
    _, pieces, _ = said([*text_ids("\u00e9\U0001f600!"), EOS])
    assert pieces == ["", "\u00e9", "", "", "", "\U0001f600", "!", ""]


def test_bytes_that_are_no_text_show_a_replacement():
    _, pieces, _ = said([0xFF, *text_ids("a"), 0xF0, 0x9F, EOS])
    assert pieces == ["", "\ufffda", "", "", "\ufffd"]


def test_leading_space_is_not_shown():
    _, pieces, _ = said([*text_ids(" \n\u3000 a b"), EOS])
    assert "".join(pieces) == "a b"


ALPHABET = ["a", "b", " ", "\u00e9", "\U0001f600"]
BYTES = st.lists(st.sampled_from([*b"aab ", *"\u00e9".encode(), *"\U0001f600".encode(), 0xFF, NEVER]), max_size=14)
STOPS = st.lists(st.text(st.sampled_from(ALPHABET), min_size=1, max_size=4), max_size=3)


@settings(max_examples=400, deadline=None)
@example(ids=[*b"a", *"\u00e9".encode()], stops=["a\u00e9"])
@given(ids=BYTES, stops=STOPS)
def test_shown_text_is_never_taken_back(ids, stops):
    """Whatever bytes come in whatever order, the pieces make up the text before the first stop."""
    decoding, pieces, script = said([*ids, EOS], max_tokens=50, stop=tuple(stops))
    text, stopped = cut_at_stop(script.text(decoding.token_ids).lstrip(), stops)
    assert "".join(pieces) == text
    before = script.text(decoding.token_ids[:-1]).lstrip()
    if stopped:
        assert not any(stop in before for stop in stops), "it went on after a stop"
    else:
        assert decoding.token_ids == ids


def test_holding_nothing_back_would_take_text_back():
    """Negative control: each kind of text that is held back would have been wrong to show."""
    assert held_back("to EN", ["END"]) == 2
    assert held_back("caf\ufffd", []) == 1
    assert held_back("a\ufffd", ["a\u00e9"]) == 2
    assert held_back("abab", ["abac", "abb"]) == 2
    assert held_back("to END", ["xyz"]) == 0
    assert held_back("", ["END"]) == 0


def test_the_first_of_several_stops_cuts():
    assert cut_at_stop("a b c", ["c", "b"]) == ("a ", True)
    assert cut_at_stop("a b c", ["d"]) == ("a b c", False)
    assert cut_at_stop("a b c", []) == ("a b c", False)


# Cancelling -----------------------------------------------------------------------------------------------------------


def step(running):
    if running.choose():
        running.decoding.advance()


def test_cancel_ends_it_before_the_next_token():
    script = Script(text_ids("hello"))
    answer = Answer("what?", 0.0)
    running = RunningAnswer(answer, Decoding(script, None, script.logits(0), torch.tensor([0]), DecodeOptions()))
    step(running)
    step(running)
    answer.cancel()
    assert not answer.done
    step(running)
    assert (answer.finish_reason, answer.text(), answer.num_tokens) == ("cancelled", "he", 2)
    assert len(script.positions) == 2, "no token was made after it was cancelled"


def test_cancel_before_the_first_token():
    script = Script(text_ids("hello"))
    answer = Answer("what?", 0.0)
    answer.cancel()
    step(RunningAnswer(answer, Decoding(script, None, script.logits(0), torch.tensor([0]), DecodeOptions())))
    assert (answer.finish_reason, answer.text(), answer.ttft_seconds) == ("cancelled", "", None)
    assert script.positions == []


def test_a_running_answer_ends_as_its_decoding_does():
    script = Script([*text_ids("hi"), EOS])
    answer = Answer("what?", 0.0)
    running = RunningAnswer(answer, Decoding(script, None, script.logits(0), torch.tensor([0]), DecodeOptions()))
    while not answer.done:
        step(running)
    assert (answer.finish_reason, answer.text(), answer.num_tokens) == ("stop", "hi", 2)

"""EmbeddedAdapter: SmolLM2-135M reads what EfficientNet names in each frame, through embeddings of its own words.

A frame is three to seven tokens behind the text `[m:ss]`: a broader word, the name, as specific as the classifier is
sure of, the colour if that is sure, and the place. A frame that is named as the one before it, in the same clip, is one
digit, and its place if that is another. What to make of that was trained: `trained` adds it to the language model's
weights. Nothing here knows memory, sessions or where weights come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vstream.choices import choices_text
from vstream.memory.block import TokenKind
from vstream.models.base import Adapter, Exchange, Question
from vstream.models.embedded import efficientnet
from vstream.models.embedded.convert import LANGUAGE, VISION
from vstream.models.embedded.fetch import embedded_dir
from vstream.models.embedded.looking import Looks, by_shape, colour_word, look_at, places_of
from vstream.models.embedded.naming import Named, goes_on, load_names, running_means
from vstream.models.embedded.trained import merge, trained_bytes
from vstream.models.loading import load_tokenizer, quiet_transformers
from vstream.models.spans import at_seconds, join_spans, plain_span, question_of, timestamped
from vstream.models.tokens import Tokens
from vstream.types import Frame, TokenSpan

PROMPT_VERSION = 4  # rises when any text or weighting below changes: memories made with another one are refused
SYSTEM = "You describe a video. Answer in one short sentence."
OPENING = "These are the times of the video and what it shows:\n"
BEFORE_QUESTION, AFTER_QUESTION = "\nQuestion: ", "\nAnswer:"
FRAMES_AT_ONCE = 8
NAME_TOKENS = 5  # of a frame, at most: one of a broader word, four of the name
COLOUR, PLACE, FRAME_TOKENS = NAME_TOKENS, NAME_TOKENS + 1, NAME_TOKENS + 2
MIN_FRAME_TOKENS = 10  # of a clip's first frame: "[0:00]", two tokens of the name, the place, a newline
MAX_FRAME_TOKENS = 18  # "[99999:59]", seven vision tokens, a newline
IMAGE_SIDE = 448
SETTINGS = {"window_tokens": 128, "retrieve_tokens": 256, "gist_tokens": 32}  # up to 48 frames, as in training


class EmbeddedAdapter(Adapter):
    """The embedded model, loaded from the folder that `fetch.add_embedded` made. Computes in float32 by default.

    Args:
        folder: of the installed model.
        device: where it computes.
        dtype: what it computes in.
        trained: whether what training added is used; without it the language model is as it was published.

    Raises:
        FileNotFoundError: the model is not installed.
    """

    name = "embedded"
    image_side = IMAGE_SIDE
    settings = MappingProxyType(SETTINGS)
    keeps_patches = False  # what a frame has in common with the one before is not said again

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        trained: bool = True,
    ) -> None:
        if not (folder / "manifest.json").is_file():
            raise FileNotFoundError(f"the embedded model is not in {folder}; run `vstream models add embedded`")
        super().__init__()
        with quiet_transformers():
            from transformers import LlamaForCausalLM

            language: Any = LlamaForCausalLM.from_pretrained(folder / LANGUAGE, dtype=dtype, local_files_only=True)
        self.tokens = Tokens(load_tokenizer(folder / LANGUAGE))
        language = language.eval().requires_grad_(False)
        added = trained_bytes() if trained else b""
        if added:
            merge(language.model, added)
        language = language.to(device)
        self.decoder, self.head = language.model, language.lm_head
        self.vision = efficientnet.load(load_file(folder / VISION)).to(device)
        self.names = load_names()
        self.eos_ids = frozenset(self.tokens.special(token) for token in ("<|im_end|>", "<|endoftext|>"))
        self.max_positions = int(self.config.max_position_embeddings)
        self.min_frame_tokens, self.max_frame_tokens = MIN_FRAME_TOKENS, MAX_FRAME_TOKENS
        self.fingerprint = _fingerprint(folder, added, dtype)

    def sink(self) -> TokenSpan:
        """The system turn and the opening of the user's turn."""
        turns = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{OPENING}"
        return self._span(self.tokens.marked(turns), TokenKind.MARKER)

    def look(self, frames: Sequence[Frame]) -> Looks:
        """What the classifier sees in T frames."""
        for frame in frames:
            if frame.image.ndim != 3:
                raise ValueError(f"the embedded model takes pictures, got features {list(frame.image.shape)}")
        pictures = [torch.from_numpy(frame.image).to(self.device) for frame in frames]
        return Looks.joined([look_at(self.vision, batch) for batch in by_shape(pictures, FRAMES_AT_ONCE)])

    def describe(self, frames: Sequence[Frame]) -> list[Named]:
        """What T frames in a row show: names and colours from all since the last cut, places from each."""
        looks = self.look(frames)
        joined = goes_on(looks.features)
        named = self.names.name(running_means(looks.likely, joined))
        colours = [colour_word(shares) for shares in running_means(looks.colours, joined)]
        each = zip(named, colours, places_of(looks.centres, joined), strict=True)
        return [replace(one, colour=colour, place=place) for one, colour, place in each]

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """The tokens of what each frame shows, [T, 7, E], see `features_of`."""
        return self.features_of(self.describe(frames))

    def features_of(self, named: Sequence[Named]) -> Tensor:
        """The tokens of T descriptions, [T, 7, E]: five of the name, colour, place; what is not said is zero."""
        tokens = torch.zeros(len(named), FRAME_TOKENS, self.config.hidden_size, dtype=self.dtype, device=self.device)
        for row, one in zip(tokens, named, strict=True):
            ids = self.name_ids(one)
            row[: len(ids)] = self.embed(torch.tensor(ids))
            if one.colour:
                row[COLOUR] = self.embed(torch.tensor([self.word_id(one.colour)]))[0]
            row[PLACE] = self.embed(torch.tensor([self.word_id(one.place)]))[0]
        return tokens

    def word_id(self, word: str) -> int:
        """The token of a word that is one."""
        (token,) = self.tokens.ids(f" {word}")
        return token

    def name_ids(self, named: Named) -> list[int]:
        """Token ids of a frame's names: a broader word, which is one token, then the name."""
        ids = self.tokens.ids(f" {named.broader or named.name}") + self.tokens.ids(f" {named.name}")
        assert len(ids) <= NAME_TOKENS, f"{named} takes {len(ids)} tokens"
        return ids

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """`[m:ss]`, the frame's tokens and a newline; of a frame that goes on with the one before, its last digit."""
        spans: list[TokenSpan] = []
        for index, (frame, tokens) in enumerate(zip(frames, features, strict=True)):
            before = index - 1
            if index and follows(frames[before].pts_seconds, frame.pts_seconds) and same_name(features[before], tokens):
                spans.append(self._goes_on(frame, tokens, features[before]))
            else:
                spans.append(self._line(frame, tokens))
        return join_spans(spans)

    def _line(self, frame: Frame, tokens: Tensor) -> TokenSpan:
        shown = tokens[tokens.any(-1)][None]  # [1, 3..7, E]
        return timestamped([frame], shown, lambda text, kind: self._span(self.tokens.ids(text), kind))

    def _goes_on(self, frame: Frame, tokens: Tensor, before: Tensor) -> TokenSpan:
        """The last digit of its second, and its place if it moved."""
        parts = [self._span(self.tokens.ids(str(int(frame.pts_seconds) % 10)), TokenKind.TIMESTAMP)]
        if not torch.equal(tokens[PLACE], before[PLACE]):
            parts.append(plain_span(tokens[PLACE:], TokenKind.VISION))
        return at_seconds(join_spans(parts), frame.pts_seconds)

    def question(self, text: str, *, choices: Sequence[str] = (), earlier: Sequence[Exchange] = ()) -> Question:
        """The question, the end of the user's turn and the start of the assistant's; earlier turns before it."""
        before = self.tokens.ids(BEFORE_QUESTION)
        for one in earlier:
            before += self.tokens.ids(one.question) + self._end_of_question + self.tokens.ids(one.answer)
            before += self.tokens.marked("<|im_end|>\n<|im_start|>user\n")
        after = self.tokens.ids(choices_text(choices)) + self._end_of_question
        return question_of(*(self._span(ids, TokenKind.MARKER) for ids in (before, self.tokens.ids(text), after)))

    @property
    def _end_of_question(self) -> list[int]:
        return self.tokens.marked(f"{AFTER_QUESTION}<|im_end|>\n<|im_start|>assistant\n")

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids."""
        return self.tokens.text(token_ids)

    def token_ids(self, text: str) -> list[int]:
        """The tokens of plain text."""
        return self.tokens.ids(text)

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(ids, dtype=torch.long)), kind)


def same_name(before: Tensor, tokens: Tensor) -> bool:
    """Whether the name in a frame's tokens [7, E] is the one in another's."""
    return torch.equal(before[:NAME_TOKENS], tokens[:NAME_TOKENS])


def follows(before_seconds: float, seconds: float) -> bool:
    """Whether a frame is so soon after another that the last digit of its second tells its time."""
    return int(seconds) - int(before_seconds) <= 1


def load(*, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0) -> EmbeddedAdapter:
    """The installed model as the registry loads it; it has nothing random, so `seed` changes nothing."""
    return EmbeddedAdapter(embedded_dir(), device=device, dtype=dtype or torch.float32)


def _fingerprint(folder: Path, added: bytes, dtype: torch.dtype) -> str:
    manifest = (folder / "manifest.json").read_bytes() + hashlib.sha256(added).digest()
    rest = f"prompt {PROMPT_VERSION}, {dtype}".encode()
    return hashlib.sha256(manifest + rest).hexdigest()[:16]

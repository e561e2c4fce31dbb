"""EmbeddedAdapter: SmolLM2-135M reads what EfficientNet names in each frame, through embeddings of its own words.

A frame is two to five tokens behind the text `[m:ss]`: a broader word, then the name, as specific as the classifier is
sure of. A frame that is named as the one before it, in the same clip, is one digit. What to make of that was trained:
`trained` adds it to the language model's weights. Nothing here knows memory, sessions or where weights come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vstream.memory.block import TokenKind
from vstream.models.base import Adapter, Question
from vstream.models.embedded import efficientnet
from vstream.models.embedded.convert import LANGUAGE, VISION
from vstream.models.embedded.fetch import embedded_dir
from vstream.models.embedded.naming import Named, load_names, steadied
from vstream.models.embedded.trained import merge, trained_bytes
from vstream.models.loading import load_tokenizer, quiet_transformers
from vstream.models.spans import at_seconds, join_spans, plain_span, question_of, timestamped
from vstream.models.tokens import Tokens
from vstream.types import Frame, TokenSpan

PROMPT_VERSION = 3  # rises when any text or weighting below changes: memories made with another one are refused
SYSTEM = "You describe a video. Answer in one short sentence."
OPENING = "These are the times of the video and what it shows:\n"
BEFORE_QUESTION, AFTER_QUESTION = "\nQuestion: ", "\nAnswer:"
FRAMES_AT_ONCE = 8
NAME_TOKENS = 5  # of a frame, at most: one of a broader word, four of the name
MIN_FRAME_TOKENS = 9  # of a clip's first frame: "[0:00]", two vision tokens, a newline
MAX_FRAME_TOKENS = 16  # "[99999:59]", five vision tokens, a newline
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

    def classify(self, frames: Sequence[Frame]) -> Tensor:
        """Class probabilities [T, 1000] of T frames."""
        return self._likely(self._look(frames))

    def _look(self, frames: Sequence[Frame]) -> Tensor:
        """The classifier's features [T, 1280]."""
        batches = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
        return torch.cat([self.vision.features(self._pictures(batch)) for batch in batches])

    def _likely(self, features: Tensor) -> Tensor:
        probabilities: Tensor = self.vision.classifier(features).softmax(-1)
        return probabilities

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """The tokens of each frame's names, [T, 5, E]; rows that a shorter name leaves over are zero."""
        seen = self._look(frames)
        return self.features_of(self.names.name(steadied(self._likely(seen), seen)))

    def features_of(self, named: Sequence[Named]) -> Tensor:
        """The tokens of T names, [T, 5, E]."""
        tokens = torch.zeros(len(named), NAME_TOKENS, self.config.hidden_size, dtype=self.dtype, device=self.device)
        for row, one in zip(tokens, named, strict=True):
            ids = self.name_ids(one)
            row[: len(ids)] = self.embed(torch.tensor(ids))
        return tokens

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
            goes_on = (
                index
                and torch.equal(tokens, features[before])
                and follows(frames[before].pts_seconds, frame.pts_seconds)
            )
            spans.append(self._goes_on(frame) if goes_on else self._line(frame, tokens))
        return join_spans(spans)

    def _line(self, frame: Frame, tokens: Tensor) -> TokenSpan:
        shown = tokens[tokens.any(-1)][None]  # [1, 2..5, E]
        return timestamped([frame], shown, lambda text, kind: self._span(self.tokens.ids(text), kind))

    def _goes_on(self, frame: Frame) -> TokenSpan:
        digit = str(int(frame.pts_seconds) % 10)
        return at_seconds(self._span(self.tokens.ids(digit), TokenKind.TIMESTAMP), frame.pts_seconds)

    def question(self, text: str) -> Question:
        """The question, the end of the user's turn and the start of the assistant's."""
        after = self.tokens.marked(f"{AFTER_QUESTION}<|im_end|>\n<|im_start|>assistant\n")
        parts = (self.tokens.ids(BEFORE_QUESTION), self.tokens.ids(text), after)
        return question_of(*(self._span(ids, TokenKind.MARKER) for ids in parts))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids."""
        return self.tokens.text(token_ids)

    def _pictures(self, frames: Sequence[Frame]) -> Tensor:
        for frame in frames:
            if frame.image.ndim != 3:
                raise ValueError(f"the embedded model takes pictures, got features {list(frame.image.shape)}")
        return torch.cat([efficientnet.prepare(torch.from_numpy(f.image)[None].to(self.device)) for f in frames])

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(ids)), kind)


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

"""EmbeddedAdapter: SmolLM2-135M reads each frame as one soft token made from EfficientNet's class probabilities.

No weight is trained for video: a frame is the mean of the language model's own embeddings of the class names, weighted
by how likely each class is, behind the text `[m:ss]`. It knows nothing of memory, sessions or where weights come from.
"""

from __future__ import annotations

import hashlib
import json
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
from vstream.models.embedded.convert import CLASSES, LANGUAGE, VISION
from vstream.models.embedded.fetch import embedded_dir
from vstream.models.loading import load_tokenizer, quiet_transformers
from vstream.models.spans import plain_span, question_of, timestamped
from vstream.models.tokens import Tokens
from vstream.types import Frame, TokenSpan

PROMPT_VERSION = 1  # rises when any text or weighting below changes: memories made with another one are refused
SYSTEM = "You describe a video. Answer in one short sentence."
OPENING = "These are the times of the video and what it shows:\n"
BEFORE_QUESTION, AFTER_QUESTION = "\nQuestion: ", "\nAnswer:"
TOP_CLASSES = 5  # the rest of the probability is noise, and would blur the token
FRAMES_AT_ONCE = 8
MIN_FRAME_TOKENS = 8  # "[0:00]", one vision token, a newline
MAX_FRAME_TOKENS = 12  # "[99999:59]", one vision token, a newline
IMAGE_SIDE = 448
SETTINGS = {"window_tokens": 64, "retrieve_tokens": 64, "gist_tokens": 32}  # 135M parameters lose track of more


class EmbeddedAdapter(Adapter):
    """The embedded model, loaded from the folder that `fetch.add_embedded` made. Computes in float32 by default.

    Raises:
        FileNotFoundError: the model is not installed.
    """

    name = "embedded"
    image_side = IMAGE_SIDE
    settings = MappingProxyType(SETTINGS)

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        if not (folder / "manifest.json").is_file():
            raise FileNotFoundError(f"the embedded model is not in {folder}; run `vstream models add embedded`")
        super().__init__()
        with quiet_transformers():
            from transformers import LlamaForCausalLM

            language: Any = LlamaForCausalLM.from_pretrained(folder / LANGUAGE, dtype=dtype, local_files_only=True)
        self.tokens = Tokens(load_tokenizer(folder / LANGUAGE))
        language = language.eval().requires_grad_(False).to(device)
        self.decoder, self.head = language.model, language.lm_head
        self.vision = efficientnet.load(load_file(folder / VISION)).to(device)
        self.class_names: list[str] = json.loads((folder / CLASSES).read_text())
        self.class_embeds = self._class_embeds()  # [1000, E]
        self.eos_ids = frozenset(self.tokens.special(token) for token in ("<|im_end|>", "<|endoftext|>"))
        self.max_positions = int(self.config.max_position_embeddings)
        self.min_frame_tokens, self.max_frame_tokens = MIN_FRAME_TOKENS, MAX_FRAME_TOKENS
        self.fingerprint = _fingerprint(folder, dtype)

    def sink(self) -> TokenSpan:
        """The system turn and the opening of the user's turn."""
        turns = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{OPENING}"
        return self._span(self.tokens.marked(turns), TokenKind.MARKER)

    def classify(self, frames: Sequence[Frame]) -> Tensor:
        """Class probabilities [T, 1000] of T frames."""
        batches = (frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE))
        return torch.cat([self.vision(self._pictures(batch)).softmax(-1) for batch in batches])

    def encode(self, frames: Sequence[Frame]) -> Tensor:
        """One soft token per frame, [T, 1, E]."""
        likely, classes = self.classify(frames).topk(TOP_CLASSES)  # [T, 5]
        likely = likely / likely.sum(-1, keepdim=True)
        tokens = (likely[..., None] * self.class_embeds[classes].float()).sum(1, keepdim=True)  # [T, 1, E]
        return tokens.to(self.dtype)

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """`[m:ss]`, the frame's tokens and a newline, for each frame."""
        return timestamped(frames, features, lambda text, kind: self._span(self.tokens.ids(text), kind))

    def question(self, text: str) -> Question:
        """The question, the end of the user's turn and the start of the assistant's."""
        after = self.tokens.marked(f"{AFTER_QUESTION}<|im_end|>\n<|im_start|>assistant\n")
        parts = (self.tokens.ids(BEFORE_QUESTION), self.tokens.ids(text), after)
        return question_of(*(self._span(ids, TokenKind.MARKER) for ids in parts))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated token ids."""
        return self.tokens.text(token_ids)

    def _class_embeds(self) -> Tensor:
        """Mean embedding of each class name as it stands in running text, [1000, E]."""
        names = (torch.tensor(self.tokens.ids(f" {name}")) for name in self.class_names)
        return torch.stack([self.embed(ids).float().mean(0) for ids in names]).to(self.dtype)

    def _pictures(self, frames: Sequence[Frame]) -> Tensor:
        for frame in frames:
            if frame.image.ndim != 3:
                raise ValueError(f"the embedded model takes pictures, got features {list(frame.image.shape)}")
        return torch.cat([efficientnet.prepare(torch.from_numpy(f.image)[None].to(self.device)) for f in frames])

    def _span(self, ids: list[int], kind: TokenKind) -> TokenSpan:
        return plain_span(self.embed(torch.tensor(ids)), kind)


def load(*, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0) -> EmbeddedAdapter:
    """The installed model as the registry loads it; it has nothing random, so `seed` changes nothing."""
    return EmbeddedAdapter(embedded_dir(), device=device, dtype=dtype or torch.float32)


def _fingerprint(folder: Path, dtype: torch.dtype) -> str:
    manifest = (folder / "manifest.json").read_bytes()
    rest = f"prompt {PROMPT_VERSION}, {dtype}, top {TOP_CLASSES}".encode()
    return hashlib.sha256(manifest + rest).hexdigest()[:16]

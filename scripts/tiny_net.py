"""`tiny` while it learns: the stock model, its embeddings made of parts, and heads that are not shipped."""

from __future__ import annotations

from typing import Any

import torch
from tiny_model import MINUTES, NUM_PLACES, make_config, minute_token, second_token
from tiny_start import TIMES, begin, named_ids, right_angles
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from vstream.app.lab.world import COLOURS, KINDS, PLACES, TEXTURES

Batch = dict[str, Tensor]
NOTES = {
    "enters": 2, "colour": len(COLOURS), "place": len(PLACES), "second": 60, "ones": 10, "tens": 10,
    "way": 5, "times": 4, "previous colour": len(COLOURS) + 1, "previous kind": len(KINDS) + 1,
}  # fmt: skip
"""What the language model should know of a thing wherever it sees it, and how many answers there are: whether it just
entered, its colour, place, second and minute (ones and tens) when it did, where it has moved, how often its kind has
entered, what entered before it."""
USUAL = {"way": 0.2, "times": 0.2}  # weight of the first answer, which is nearly always right
NOTED_LAYERS = 5  # so many layers have it noted


class Words(nn.Module):
    """Embeddings of all tokens [V, E].

    What pictures are made of never changes, so that vision can be trained apart. Times are sums of digits.

    Attributes:
        seen: [E], what all of a picture has in common.
    """

    def __init__(self, tokenizer: Any, hidden: int) -> None:
        """Random but for what never changes."""
        super().__init__()
        vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        number = {token: index for index, token in enumerate(vocabulary)}
        self.register_buffer("parts", parts_of_times(number), persistent=False)
        plain = [token.lower() if len(token) > 1 else token for token in vocabulary]  # "What" is "what", "A" is not "a"
        self.register_buffer("same", torch.tensor([number.get(token, 0) for token in plain]), persistent=False)
        basis, fixed = right_angles(hidden), torch.zeros(len(vocabulary), hidden)
        ids = [number for group in named_ids(tokenizer).values() for number in group]
        fixed[ids] = basis[: len(ids)]
        self.register_buffer("fixed", fixed, persistent=False)
        self.register_buffer("seen", basis[len(ids) + self.parts.shape[1]], persistent=False)
        self.table = nn.Parameter(torch.zeros(len(vocabulary), hidden))
        self.digits = nn.Parameter(torch.zeros(self.parts.shape[1], hidden))

    def forward(self) -> Tensor:
        """[V, E]."""
        table = torch.where(self.fixed.any(1, keepdim=True), self.fixed, self.table)[self.same]
        return torch.where(self.parts.any(1, keepdim=True), self.parts @ self.digits, table)


def parts_of_times(number: dict[str, int]) -> Tensor:
    """Which digits each token of a time is made of, [V, 53]."""
    parts = torch.zeros(len(number), TIMES["types"][1])
    for minute in range(MINUTES):
        row = parts[number[minute_token(minute)]]
        row[minute // 100] = row[15 + minute // 10 % 10] = row[25 + minute % 10] = row[51] = 1
    for second in range(60):
        row = parts[number[second_token(second)]]
        row[35 + second // 10] = row[41 + second % 10] = row[52] = 1
    return parts


class Rounding:
    """Rounds keys and values of frames to four bits a number while it is on, as memory does; gradients pass through.

    As `vstream.memory.codec` has it: turned, a scale and a minimum per token and head, keys less their mean.

    Attributes:
        where: [S, N] 1 for tokens of frames, else 0; None for off.
    """

    def __init__(self, decoder: Any) -> None:
        """Of all layers of a Qwen3 decoder."""
        self.where: Tensor | None = None
        self._head_dim = decoder.config.head_dim
        self._turn = hadamard(self._head_dim)
        for layer in decoder.layers:
            layer.self_attn.k_norm.register_forward_hook(lambda module, given, keys: self._round(keys, less_mean=True))
            layer.self_attn.v_proj.register_forward_hook(lambda module, given, values: self._values(values))

    def _values(self, values: Tensor) -> Tensor | None:
        rounded = self._round(values.unflatten(-1, (-1, self._head_dim)), less_mean=False)
        return None if rounded is None else rounded.flatten(-2)

    def _round(self, found: Tensor, *, less_mean: bool) -> Tensor | None:
        """Of [S, N, K, D]."""
        if self.where is None:
            return None
        where, given, turn = self.where[:, :, None, None].to(found), found.detach(), self._turn.to(found)
        count = where.sum(1, keepdim=True).clamp_min(1)
        mean = (given * where).sum(1, keepdim=True) / count if less_mean else torch.zeros_like(given[:, :1])
        turned = (given - mean) @ turn
        least, most = turned.amin(-1, keepdim=True), turned.amax(-1, keepdim=True)
        step = (most - least).clamp_min(1e-6) / 15
        error = (((turned - least) / step).round() * step + least - turned) @ turn.T
        return found + error * where


def hadamard(size: int) -> Tensor:
    """The Hadamard matrix [size, size] of length 1, for a power of two."""
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / size**0.5


class Tiny(nn.Module):
    """The stock model, its embeddings factorised while it learns.

    Attributes:
        rounding: off, unless `read` is told.
        tell: from a picture's features: colour, texture and kind.
        note: from the language model's fifth layer: `NOTES`.
    """

    def __init__(self, tokenizer: Any) -> None:
        """As training starts."""
        super().__init__()
        self.stock = LlavaOnevisionForConditionalGeneration(make_config())
        hidden = self.stock.config.text_config.hidden_size
        self.words = Words(tokenizer, hidden)
        self.tell = nn.Linear(hidden, len(COLOURS) + len(TEXTURES) + len(KINDS) + 1)
        self.note = nn.Linear(hidden, sum(NOTES.values()))
        places = [tokenizer(place, add_special_tokens=False)["input_ids"] for place in PLACES]
        self.register_buffer("places", torch.tensor(places), persistent=False)  # [4, 2]
        begin(self.words, self.stock.model.language_model, tokenizer)
        self.rounding = Rounding(self.stock.model.language_model)

    def see(self, pictures: Tensor) -> Tensor:
        """Features [T, 4, E] of pictures [T, 3, 48, 48]."""
        features: Tensor = self.stock.model.get_video_features(pictures[None]).pooler_output
        return features.flatten(0, -2)[: NUM_PLACES * len(pictures)].view(len(pictures), NUM_PLACES, -1)

    def symbols(self, batch: Batch) -> Tensor:
        """What pictures should look like to the language model, [T, 4, E]."""
        table = self.words.fixed
        content = (table[batch["symbols"]] * batch["weights"][..., None]).sum(2)
        return content + 0.5 * table[self.places].sum(1) + self.words.seen

    def embed(self, batch: Batch, features: Tensor) -> Tensor:
        """Embeddings [S, N, E] of a batch whose T frames look like features [T, 4, E]."""
        ids = batch["ids"]
        embeds = self.words()[ids.clamp(min=0)]
        embeds = embeds.masked_scatter((ids == -1)[..., None], features.to(embeds.dtype))
        return torch.where((ids == -2)[..., None], self.stock.model.image_newline, embeds)

    def read(self, batch: Batch, features: Tensor, *, rounded: bool = False) -> tuple[Tensor, Tensor]:
        """Logits [M, V] of the M answer tokens of a batch, notes [T * 4, sum of NOTES]; `rounded`: see `Rounding`."""
        self.rounding.where = frames_of(batch["ids"]) if rounded else None
        out = self.stock.model.language_model(
            inputs_embeds=self.embed(batch, features), position_ids=batch["positions"], attention_mask=batch["mask"],
            use_cache=False, output_hidden_states=True,
        )  # fmt: skip
        self.rounding.where = None
        notes = self.note(F.layer_norm(out.hidden_states[NOTED_LAYERS], out.last_hidden_state.shape[-1:]))
        told = batch["targets"] != -100
        return out.last_hidden_state[told] @ self.words().T, notes[batch["ids"] == -1]


def frames_of(ids: Tensor) -> Tensor:
    """1 for what is between the sink and the last quarter of a frame (token -1), else 0, [S, N]."""
    to_come = (ids == -1).flip(1).cummax(1).values.flip(1).float()
    to_come[:, 0] = 0
    return to_come


def note_loss(notes: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of notes [T * 4, ...] against targets [T * 4, len(NOTES)], -100 for what cannot be known."""
    losses = []
    parts = notes.split(list(NOTES.values()), dim=1)
    for name, logits, target in zip(NOTES, parts, targets.unbind(1), strict=True):
        weight = torch.ones(logits.shape[1], device=logits.device)
        weight[0] = USUAL.get(name, 1.0)
        known = weight[target[target >= 0]].sum().clamp(min=1)
        losses.append(F.cross_entropy(logits, target, weight, reduction="sum") / known)
    return torch.stack(losses).mean()

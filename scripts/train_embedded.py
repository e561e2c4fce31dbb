#!/usr/bin/env python3
"""Trains the embedded model's LoRA on made-up streams; see `embedded_stories` and `embedded_questions`.

One step is one stream with about ten questions that share its tokens and do not see each other. Every example follows
from the seed and the step, so a run that is stopped goes on from its last checkpoint as if it had not been. The
learning rate is constant and falls only at the end (`--finish`), so that any checkpoint can be made a release.
It trains on one CPU thread unless told otherwise, and on CUDA with `--device cuda`.

    train_embedded.py FOLDER --minutes 90            checkpoints go to FOLDER, log.jsonl too
    train_embedded.py FOLDER --minutes 15 --finish   lowers the rate to zero, then writes the release to FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded_questions import Asked, ask
from embedded_stories import BLOCK_FRAMES, NaturalStories, Source, Story
from embedded_worlds import WorldStories
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from training_state import load_state, save_state

from vstream.models.embedded.adapter import EmbeddedAdapter
from vstream.models.embedded.fetch import embedded_dir
from vstream.models.embedded.trained import SCALE
from vstream.types import Frame

FIRST_LAYER = 8  # `maxsim` compares keys of the layers before this one: retrieval stays what it was
RANKS = {"q_proj": 16, "k_proj": 16, "v_proj": 16, "o_proj": 16, "down_proj": 8}
RATE, LATER_RATE, LATER_STEP, WARM_UP_STEPS = 1e-3, 6e-4, 500, 40
CHECKPOINT_SECONDS, LOG_STEPS = 180, 20
CHAT_SHARE, CHAT_WEIGHT = 0.5, 0.5  # so many steps also keep a plain chat answer as it was
NATURAL_SHARE = 0.88  # of the streams; the others are pictures of the synthetic world
QUESTIONS = 10
UNSEEN = np.zeros((1, 1, 3), dtype=np.uint8)  # the picture of a frame whose names are known
STATE, COUNTED = "state", ("step", "tokens", "seconds")


class HalfProduct(torch.autograd.Function):
    """A frozen weight's product in bfloat16: twice as fast as float32 where the CPU has instructions for it."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        """[.., I] and [O, I] to [.., O], in float32."""
        context.save_for_backward(weight)
        return F.linear(x.bfloat16(), weight).float()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """To the input only."""
        (weight,) = context.saved_tensors
        return (gradients[0].bfloat16() @ weight).float(), None


class HalfLinear(nn.Module):
    """A frozen linear layer without bias that multiplies in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert linear.bias is None, "the layer has a bias"
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[.., I] to [.., O]."""
        product: Tensor = HalfProduct.apply(x, self.weight)
        return product


def halve(decoder: Any) -> None:
    """Makes every linear layer of the decoder multiply in bfloat16."""
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, HalfLinear(linear))


class Lora(nn.Module):
    """A linear layer with a trained product of two thin matrices added to it."""

    def __init__(self, linear: nn.Linear | HalfLinear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        """[.., I] to [.., O]."""
        plain: Tensor = self.linear(x)
        return plain + SCALE * F.linear(F.linear(x, self.down), self.up) if self.on else plain


def add_lora(decoder: Any, seed: int) -> dict[str, Lora]:
    """Puts trained pairs into the decoder, by the name of the weight that each belongs to."""
    torch.manual_seed(seed)
    added = {}
    for index, layer in enumerate(decoder.layers):
        for part in (layer.self_attn, layer.mlp) if index >= FIRST_LAYER else ():
            for name, linear in list(part.named_children()):
                if name in RANKS:
                    pair = Lora(linear, RANKS[name]).to(linear.weight.device)
                    setattr(part, name, pair)
                    where = "self_attn" if part is layer.self_attn else "mlp"
                    added[f"layers.{index}.{where}.{name}.weight"] = pair
    return added


@dataclass
class Packed:
    """A stream and its questions in one sequence of N tokens.

    Attributes:
        embeds: [N, E].
        positions: [N], those of every question starting where the stream ends.
        part: [N], 0 for the stream, else the question's number.
        targets: [N] next token where it is one of an answer, else -100.
        kinds: each question's type.
    """

    embeds: Tensor
    positions: Tensor
    part: Tensor
    targets: Tensor
    kinds: list[str]

    def answers_of(self) -> list[Tensor]:
        """For each question, which of all answers' tokens are its own, [A] bool."""
        part = self.part[self.targets != -100]
        return [part == index + 1 for index in range(len(self.kinds))]

    def mask(self) -> Tensor:
        """[1, 1, N, N]: earlier tokens of the stream and of the same question."""
        same = (self.part[:, None] == self.part[None]) | (self.part[None] == 0)
        return (same & torch.ones_like(same).tril())[None, None]


class Packer:
    """Builds sequences as the adapter builds them."""

    def __init__(self, adapter: EmbeddedAdapter) -> None:
        self.adapter = adapter
        self.eos = torch.tensor([adapter.tokens.tokenizer.convert_tokens_to_ids("<|im_end|>")])

    def stream(self, story: Story, rng: random.Random) -> Tensor:
        """The system turn, blurred tokens as gists are, and every frame's line, [N, E]."""
        seen = story.frames
        frames = [Frame(float(frame.second), UNSEEN) for frame in seen]
        features = self.adapter.features_of([frame.named for frame in seen])
        clips = (slice(start, start + BLOCK_FRAMES) for start in range(0, len(frames), BLOCK_FRAMES))
        lines = torch.cat([self.adapter.layout(frames[clip], features[clip]).embeds for clip in clips])
        return torch.cat([self.adapter.sink().embeds, self._blurred(lines, rng), lines])

    def _blurred(self, lines: Tensor, rng: random.Random) -> Tensor:
        """Now and then up to 16 tokens that are means of others."""
        count = rng.choice((0, 0, 4, 16))
        chosen = torch.tensor([[rng.randrange(len(lines)) for _ in range(3)] for _ in range(count)], dtype=torch.long)
        return lines[chosen.view(-1, 3)].mean(1)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.adapter.tokens.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def pack(self, stream: Tensor, asked: Sequence[Asked]) -> Packed:
        """One sequence of a stream's tokens and its questions."""
        parts, answers = [stream], [torch.full((len(stream),), -100)]
        for one in asked:
            question = self.adapter.question(one.question).span.embeds
            answer = torch.cat([torch.tensor(self._ids(one.answer)), self.eos])
            parts.append(torch.cat([question, self.adapter.embed(answer[:-1])]))
            answers.append(torch.cat([torch.full((len(question) - 1,), -100), answer]))
        lengths = [len(part) for part in parts]
        starts = [0] + [lengths[0]] * len(asked)
        positions = torch.cat([torch.arange(n) + start for n, start in zip(lengths, starts, strict=True)])
        part = torch.cat([torch.full((n,), index) for index, n in enumerate(lengths)])
        return Packed(torch.cat(parts), positions, part, torch.cat(answers), [one.kind for one in asked])


class Chat:
    """Plain chat that must stay as it is: prompts and what the untrained model says, kept in the run's folder."""

    def __init__(self, adapter: EmbeddedAdapter, folder: Path) -> None:
        self.adapter = adapter
        self.path = folder / "chat.json"

    def batch(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Embeddings [1, N, E] of one chat, and [N] True where the next token is the answer's."""
        from embedded_chat import PROMPTS, prompt_ids

        said: dict[str, list[int]] = json.loads(self.path.read_text())
        prompt = rng.choice(PROMPTS)
        before, answer = prompt_ids(self.adapter, prompt), said[prompt]
        where = torch.zeros(len(before) + len(answer), dtype=torch.bool)
        where[len(before) - 1 : -1] = True
        return self.adapter.embed(torch.tensor(before + answer))[None], where

    def prepare(self) -> None:
        """Lets the untrained model answer all prompts, once."""
        from embedded_chat import PROMPTS, say

        if not self.path.exists():
            self.path.write_text(json.dumps({prompt: say(self.adapter, prompt, 40) for prompt in PROMPTS}))


def answer_loss(adapter: EmbeddedAdapter, packed: Packed) -> tuple[Tensor, Tensor]:
    """Loss of the answers' A tokens, those of long answers weighing less, and whether each is the likeliest [A]."""
    out: Any = adapter.decoder(
        inputs_embeds=packed.embeds[None],
        position_ids=packed.positions[None],
        attention_mask=packed.mask(),
        use_cache=False,
    )
    wanted = packed.targets != -100
    logits = adapter.head(out.last_hidden_state[0, wanted])
    targets = packed.targets[wanted]
    weights = sum(own / own.sum().sqrt() for own in packed.answers_of())
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum(), logits.argmax(-1) == targets


def chat_loss(adapter: EmbeddedAdapter, pairs: dict[str, Lora], chat: tuple[Tensor, Tensor]) -> Tensor:
    """How far a plain chat answer's probabilities are from the untrained model's."""
    embeds, where = chat

    def logs(on: bool) -> Tensor:
        for pair in pairs.values():
            pair.on = on
        out: Any = adapter.decoder(inputs_embeds=embeds, use_cache=False)
        found: Tensor = adapter.head(out.last_hidden_state[0, where]).log_softmax(-1)
        return found

    with torch.no_grad():
        before = logs(False)
    return F.kl_div(logs(True), before, log_target=True, reduction="batchmean")


def frames_at(step: int, rng: random.Random) -> int:
    """How long a stream is: short at first, later mostly up to 64 frames and now and then twice that."""
    longest = 14 if step < 300 else rng.choice((16, 32, 48, 48, 64, 64, 64, 128))
    return rng.randint(longest // 3, longest)


@dataclass
class Run:
    """A training run in its folder."""

    folder: Path
    adapter: EmbeddedAdapter
    seed: int = 0
    half: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for weight in (*self.adapter.decoder.parameters(), *self.adapter.head.parameters()):
            weight.requires_grad_(False)
        self.chat = Chat(self.adapter, self.folder)
        self.chat.prepare()
        if self.half:
            halve(self.adapter.decoder)
        self.pairs = add_lora(self.adapter.decoder, self.seed)
        weights = [weight for pair in self.pairs.values() for weight in (pair.down, pair.up)]
        self.optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
        self.weights, self.packer, self.step, self.tokens, self.seconds = weights, Packer(self.adapter), 0, 0, 0.0
        last = self.adapter.vision.classifier
        natural = NaturalStories(self.adapter.names, last.weight, last.bias)
        self.sources: list[tuple[float, Source]] = [
            (NATURAL_SHARE, natural),
            (1 - NATURAL_SHARE, WorldStories(self.adapter)),
        ]
        self.load()

    def example(self, step: int) -> tuple[Packed, tuple[Tensor, Tensor] | None]:
        """What a step trains on; it follows from the seed and the step alone."""
        rng = random.Random(f"{self.seed} {step}")
        weights, sources = zip(*self.sources, strict=True)
        story = rng.choices(sources, weights)[0](rng, frames_at(step, rng))
        asked = ask(story, self.adapter.names, rng, QUESTIONS)
        packed = self.packer.pack(self.packer.stream(story, rng), asked)
        return packed, self.chat.batch(rng) if rng.random() < CHAT_SHARE else None

    def train_step(self, rate: float) -> dict[str, Any]:
        """One step of the optimizer."""
        packed, chat = self.example(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / WARM_UP_STEPS)
        loss, right = answer_loss(self.adapter, packed)
        whole = [bool(right[part].all()) for part in packed.answers_of()]
        loss.backward()
        kept = None
        if chat:
            kept = chat_loss(self.adapter, self.pairs, chat)
            (CHAT_WEIGHT * kept).backward()
        norm = nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.tokens = self.step + 1, self.tokens + len(packed.part)
        return {
            "loss": loss.item(),
            "right": right.float().mean().item(),
            "chat": kept and kept.item(),
            "norm": norm.item(),
            "whole": list(zip(packed.kinds, whole, strict=True)),
        }

    def train(self, minutes: float, *, finish: bool) -> None:
        """Trains for so long, and writes a checkpoint every few minutes and at the end."""
        started = saved = time.perf_counter()
        logged: list[dict[str, Any]] = []
        while (spent := time.perf_counter() - started) < 60 * minutes:
            rate = RATE if self.step < LATER_STEP else LATER_RATE
            rate *= max(0.0, 1 - spent / (60 * minutes)) if finish else 1.0
            before = time.perf_counter()
            logged.append(self.train_step(rate))
            self.seconds += time.perf_counter() - before
            if self.step % LOG_STEPS == 0:
                self.log(logged, rate)
                logged = []
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.perf_counter()
        self.save()
        self.release()

    def log(self, steps: Sequence[dict[str, Any]], rate: float) -> None:
        """A line of means in log.jsonl."""
        chats = [one["chat"] for one in steps if one["chat"] is not None]
        line: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "minutes": round(self.seconds / 60, 1)}
        for name in ("loss", "right", "norm"):
            line[name] = round(sum(one[name] for one in steps) / len(steps), 4)
        for kind in sorted({kind for one in steps for kind, _ in one["whole"]}):
            whole = [right for one in steps for asked, right in one["whole"] if asked == kind]
            line[f"whole {kind}"] = round(sum(whole) / len(whole), 2)
        line |= {"chat_kl": round(sum(chats) / len(chats), 4) if chats else None, "rate": round(rate, 6)}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The pairs' matrices under the names that the package reads."""
        for name, pair in self.pairs.items():
            yield f"{name}.down", pair.down
            yield f"{name}.up", pair.up

    def save(self) -> None:
        """Writes weights, the optimizer's moments and the counters."""
        tensors = {}
        for name, value in self.named_weights():
            tensors[f"weight.{name}"] = value
            for moment, tensor in self.optimizer.state[value].items():
                tensors[f"{moment}.{name}"] = tensor
        save_state(self.folder / STATE, tensors, {name: getattr(self, name) for name in COUNTED})

    def load(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        found = load_state(self.folder / STATE)
        if found is None:
            return
        tensors, counters = found
        with torch.no_grad():
            for name, value in self.named_weights():
                value.copy_(tensors[f"weight.{name}"])
                self.optimizer.state[value] = {
                    moment: tensors[f"{moment}.{name}"].to(value.device if moment != "step" else "cpu")
                    for moment in ("exp_avg", "exp_avg_sq", "step")
                }
        self.step, self.tokens, self.seconds = (counters[name] for name in COUNTED)

    def release(self) -> None:
        """What the package ships, in bfloat16."""
        weights = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in self.named_weights()}
        about = {
            "step": self.step,
            "tokens": self.tokens,
            "minutes": round(self.seconds / 60),
            "scale": SCALE,
            "seed": self.seed,
        }
        save_file(weights, self.folder / "lora.safetensors", metadata={"about": json.dumps(about)})


def main() -> None:
    """Trains from the last checkpoint, if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoints, log and release")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--finish", action="store_true", help="lower the rate to zero over these minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--half", action="store_true", help="multiply in bfloat16 (a CPU with avx512_bf16: twice as fast)"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    adapter = EmbeddedAdapter(embedded_dir(), device=given.device, trained=False)
    Run(given.folder, adapter, given.seed, given.half).train(given.minutes, finish=given.finish)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Trains `tiny`, the ruler for memory, from nothing: on the synthetic world, on a CPU or a GPU.

Phases, each resumable from its checkpoint in --work, an example of what they see being made anew for every step:

1. `symbols`: the language model alone; a quarter of a frame is the sum of the embeddings of what is in it.
2. `sight`: the vision tower and projector learn to give those sums from pictures; it can run beside the first.
3. `joint`: both together on pictures, on the losses of both.
4. `export` writes the checkpoint in the hub's own layout, weights in bfloat16.

    python scripts/train_tiny.py symbols --work ~/tiny     # then sight, joint, export --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_model import make_tokenizer, save_around
from tiny_net import Batch, Tiny, note_loss
from tiny_streams import Collator, Stream, gapped_stream, pictures_of, plain_stream, random_frames
from torch import Tensor, nn
from torch.nn import functional as F
from training_state import load_state, save_state

from vstream.app.lab.world import COLOURS, KINDS, TEXTURES

QUESTIONS = 12
STEPS = {"symbols": 7000, "sight": 3200, "joint": 2700}
RATES = {"symbols": 6e-4, "sight": 1.5e-3, "joint": 4e-4}
ROUNDED_SHARE = 0.6
"""Of the steps, once streams have gaps: frames are in four bits a number, as memory may keep them."""
TOKENS = {"symbols": 1800, "joint": 1800}
"""Of one step of the language model."""
PICTURES = 96
"""Of one step of the tower alone."""
SAVE_SECONDS = 60.0
VISUAL = ("vision_tower", "multi_modal_projector", "tell.")


class Run:
    """One phase: its model, optimiser and next step; the same steps whether it is stopped in between or not."""

    def __init__(self, phase: str, work: Path, *, seed: int = 0, device: str = "cpu", steps: int | None = None) -> None:
        """From this phase's checkpoint, or where there is none from the phases before."""
        torch.manual_seed(seed)
        self.phase, self.work, self.seed, self.device = phase, work, seed, device
        self.total = steps or STEPS[phase]
        tokenizer = make_tokenizer()
        self.collator, self.model = Collator(tokenizer), Tiny(tokenizer).to(device)
        self.parameters = trained(self.model, phase)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)
        self.step = self._resume()

    def train_step(self) -> dict[str, float]:
        """One step; what to tell of it."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.phase, self.step, self.total)
        loss, facts = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        return {"loss": loss.item(), **facts}

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """The loss of the next step, which depends on seed, phase and step alone."""
        rng, progress = random.Random(f"{self.seed} {self.phase} {self.step}"), self.step / self.total
        if self.phase == "sight":
            streams = list(random_frames(rng, PICTURES))
            batch = self._batch(streams, rng, jumps=False)
            loss, right = sight_loss(self.model, self._see(streams, rng), batch, self.collator)
            return loss, {"kinds": right}
        joint = self.phase == "joint"
        streams = streams_at(rng, 1.0 if joint else progress, TOKENS[self.phase])
        batch = self._batch(streams, rng, jumps=joint or progress > 0.3)
        rounded = (joint or progress > 0.6) and rng.random() < ROUNDED_SHARE
        if not joint:
            return self._read(batch, self._noisy(self.model.symbols(batch)), rounded)
        features = self._see(streams, rng)
        more, right = sight_loss(self.model, features, batch, self.collator)
        loss, facts = self._read(batch, features, rounded)
        return loss + 0.3 * more, {**facts, "kinds": right}

    def _read(self, batch: Batch, features: Tensor, rounded: bool) -> tuple[Tensor, dict[str, float]]:
        logits, notes = self.model.read(batch, features.flatten(0, 1), rounded=rounded)
        told = batch["targets"][batch["targets"] != -100]
        noted = note_loss(notes, batch["notes"].flatten(0, 1))
        right = (logits.argmax(-1) == told).float().mean()
        facts = {"tokens right": float(right), "notes": float(noted.detach())}
        return F.cross_entropy(logits, told) + 0.5 * noted, facts

    def _noisy(self, features: Tensor) -> Tensor:
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(self.step))
        return features + 0.03 * noise.to(self.device)

    def _see(self, streams: list[Stream], rng: random.Random) -> Tensor:
        return self.model.see(pictures_of(streams, rng).to(self.device))

    def _batch(self, streams: list[Stream], rng: random.Random, *, jumps: bool) -> Batch:
        batch = self.collator.batch(streams, rng, jumps=jumps)
        return {name: one.to(self.device) for name, one in batch.items()}

    def save(self) -> None:
        """Writes a checkpoint whole or not at all."""
        tensors = {f"weight.{name}": one for name, one in self.model.named_parameters()}
        for number, parameter in enumerate(self.parameters):
            for moment, tensor in self.optimiser.state[parameter].items():
                tensors[f"{moment}.{number}"] = tensor
        save_state(self.work / self.phase, tensors, {"step": self.step})

    def _resume(self) -> int:
        found = load_state(self.work / self.phase)
        if found is not None:
            tensors, counters = found
            take(self.model, tensors)
            for number, parameter in enumerate(self.parameters):
                if f"step.{number}" in tensors:  # parts of the stock tower that no picture uses have no moments
                    moments = {name: tensors[f"{name}.{number}"].to(self.device) for name in ("exp_avg", "exp_avg_sq")}
                    self.optimiser.state[parameter] = {**moments, "step": tensors[f"step.{number}"]}
            return int(counters["step"])
        if self.phase == "joint":
            take(self.model, weights_of(self.work, "symbols"), only=lambda name: not is_visual(name))
            take(self.model, weights_of(self.work, "sight"), only=is_visual)
        return 0


def weights_of(work: Path, phase: str) -> dict[str, Tensor]:
    """What a phase's checkpoint holds.

    Raises:
        FileNotFoundError: there is none.
    """
    found = load_state(work / phase)
    if found is None:
        raise FileNotFoundError(f"{work} has no checkpoint of the phase {phase!r}; train that first")
    return found[0]


@torch.no_grad()
def take(model: Tiny, tensors: dict[str, Tensor], only: Callable[[str], bool] = lambda name: True) -> None:
    """Copies a checkpoint's weights into the model."""
    for name, parameter in model.named_parameters():
        if only(name):
            parameter.copy_(tensors[f"weight.{name}"])


def is_visual(name: str) -> bool:
    """Whether a parameter is of vision."""
    return any(part in name for part in VISUAL)


def trained(model: Tiny, phase: str) -> list[nn.Parameter]:
    """The parameters that a phase changes; the stock embeddings are made at the export."""
    named = [(name, p) for name, p in model.named_parameters() if p is not model.stock.get_input_embeddings().weight]
    return [p for name, p in named if phase == "joint" or is_visual(name) == (phase == "sight")]


def rate(phase: str, step: int, total: int) -> float:
    """Warm-up, a plateau, and down over the last 40%."""
    left = (total - step) / (0.4 * total)
    return RATES[phase] * min(1.0, (step + 1) / 150, max(0.0, left))


def streams_at(rng: random.Random, progress: float, budget: int) -> list[Stream]:
    """Streams that fill a step: short and dense first, long and with gaps later."""
    longest = 6 + int(50 * min(1.0, progress / 0.6) ** 1.5)
    gapped = progress > 0.2 and longest >= 16 and rng.random() < 0.5
    frames = rng.randint(16 if gapped else 4 if progress < 0.3 else 6, longest)
    count = max(2, budget // (6 * frames + 14 * QUESTIONS))
    dense = 0.9 - 0.7 * min(1.0, progress / 0.6)
    if gapped:
        return [gapped_stream(rng, frames, QUESTIONS) for _ in range(count)]
    return [plain_stream(rng, frames, QUESTIONS, dense) for _ in range(count)]


def names_of(batch: Batch, collator: Collator) -> tuple[list[Tensor], Tensor]:
    """Which colour, texture and kind (or none) is mostly in each quarter, and which quarters are clear, [T * 4]."""
    ids, weights = batch["symbols"].flatten(0, 1), batch["weights"].flatten(0, 1)
    things = weights[:, [0, 3, 6]]
    most = things.argmax(1)
    groups, found = (COLOURS, TEXTURES, KINDS), []
    for part, group in enumerate(groups):
        lookup = {collator.ids(word)[0]: number for number, word in enumerate(group)}
        chosen = ids.gather(1, (3 * most + part).clamp(max=6)[:, None])[:, 0].tolist()
        none = len(group) if part == 2 else -100
        names = [none if m == 2 else lookup[c] for c, m in zip(chosen, most.tolist(), strict=True)]
        found.append(torch.tensor(names, device=ids.device))
    return found, things.max(1).values > 0.7


def sight_loss(model: Tiny, features: Tensor, batch: Batch, collator: Collator) -> tuple[Tensor, float]:
    """How far features are from the sums of words, and from telling colour, texture and kind; share of kinds told."""
    wanted = model.symbols(batch)
    loss = F.mse_loss(features, wanted) / wanted.var()
    (colour, texture, kind), clear = names_of(batch, collator)
    told = model.tell(features.flatten(0, 1)).split([len(COLOURS), len(TEXTURES), len(KINDS) + 1], dim=1)
    for logits, target in zip(told, (colour, texture, kind), strict=True):
        loss = loss + 0.5 * F.cross_entropy(logits, torch.where(clear, target, -100))
    there = clear & (kind < len(KINDS))
    return loss, float((told[2].argmax(1) == kind)[there].float().mean())


def run(options: argparse.Namespace) -> None:
    """One phase, from its last checkpoint to its end or until the time is over."""
    torch.set_num_threads(options.threads)
    here = Run(options.phase, options.work, seed=options.seed, device=options.device, steps=options.steps)
    began = saved = time.monotonic()
    sums, count = Counter[str](), 0
    while here.step < here.total and time.monotonic() - began < 60 * options.minutes:
        sums.update(here.train_step())
        count += 1
        if here.step % 50 == 0:
            means = {name: round(value / count, 4) for name, value in sums.items()}
            seconds = round(time.monotonic() - began)
            print(json.dumps({"phase": here.phase, "step": here.step, "seconds": seconds, **means}), flush=True)
            sums, count = Counter[str](), 0
        if time.monotonic() - saved > SAVE_SECONDS:
            here.save()
            saved = time.monotonic()
    here.save()


def export(work: Path, out: Path, *, of: str = "joint") -> None:
    """Writes a phase's weights as a checkpoint in the hub's own layout, in bfloat16."""
    model = Tiny(make_tokenizer())
    take(model, weights_of(work, of))
    with torch.no_grad():
        model.stock.get_input_embeddings().weight.copy_(model.words())
    model.stock.tie_weights()
    model.stock.to(torch.bfloat16).save_pretrained(out)
    save_around(out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=[*STEPS, "export"])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints, outside the repository")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    parser.add_argument("--steps", type=int, help="instead of the phase's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--of", default="joint", help="export: which phase's weights")
    parser.add_argument("--out", type=Path, help="export: where to")
    options = parser.parse_args()
    if options.phase != "export":
        run(options)
    elif options.out is None:
        parser.error("export needs --out, the folder to write to")
    else:
        export(options.work, options.out, of=options.of)


if __name__ == "__main__":
    sys.exit(main())

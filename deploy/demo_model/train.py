"""Train the demo's model on a CPU, from nothing; some forty minutes on an idle core.

    python -m deploy.demo_model.train                       # writes weights.safetensors beside this file
    python -m deploy.demo_model.train --first-stage 1       # goes on from it

The same releases, machine and thread count give the same weights. Clips are drawn anew for each step, none twice. What is printed
beside the loss is accuracy on encoded clips of seeds that training never draws, through the project's pipeline.

The model learns sooner by hints: layers that are thrown away afterwards say of each temporal step what it shows, and at which
second.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from deploy.demo_model.batches import IGNORED, Batch, collate
from deploy.demo_model.checkpoint import TEXT, WEIGHTS
from deploy.demo_model.evaluate import held_out_batches, places, table
from deploy.demo_model.network import accuracy, load, make_network, predict, save
from deploy.demo_model.questions import TAUGHT_KINDS
from deploy.demo_model.samples import drawn_sample, vocabulary
from deploy.demo_model.story import COLORS, DIRECTIONS, HELD_OUT_SEEDS, SHAPES


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of steps in which the learning rate rises from 0 to `rate` and falls again.

    Attributes:
        fall_steps: After how many steps it would be near 0.
        questions: About each clip.
        hints: How many columns of `Batch.shown` are hinted at, the first ones.
        kinds: Of questions.
        weighs_tokens: Each token of an answer counts the same; else each answer does, so that those that tell all that happens do
            not outweigh those that name one thing.
    """

    steps: int
    rate: float
    fall_steps: int
    clips: int
    questions: int
    kinds: tuple[str, ...]
    weighs_tokens: bool = False
    hints: int = 3


LAST_KINDS = ("describe", "direction", "shape", "first", "last", "order", "count", "time", "time", "time")
STAGES = (
    Stage(900, 2e-3, fall_steps=1800, clips=24, questions=7, kinds=TAUGHT_KINDS, weighs_tokens=True),
    Stage(600, 2e-3, fall_steps=1200, clips=20, questions=11, kinds=TAUGHT_KINDS),
    Stage(450, 1.5e-3, fall_steps=1100, clips=20, questions=9, kinds=LAST_KINDS, hints=4),
    Stage(150, 1.5e-3, fall_steps=650, clips=20, questions=9, kinds=LAST_KINDS, hints=5),
    Stage(400, 1.5e-3, fall_steps=500, clips=20, questions=9, kinds=LAST_KINDS, hints=5),
    Stage(280, 1e-3, fall_steps=280, clips=20, questions=9, kinds=LAST_KINDS, hints=5),
)
WARM_UP_STEPS = 30
SEEDS_OF_A_STAGE = 10_000_000
WATCHED_SEEDS = range(48)
"""Of the held-out clips that are looked at meanwhile; those of `evaluate` are others."""
_HINT_SIZES = (1 + len(COLORS), 1 + len(SHAPES), 1 + len(DIRECTIONS), 10, 3)
_SECOND = 3
"""Of them the one that is hinted at in the language model, the others are in the vision encoder."""
_HINT_SHARE = 0.3


def train(first_stage: int, output: Path) -> None:
    """Train, tell how it goes, and write the weights now and then."""
    torch.manual_seed(0)
    token_ids = vocabulary()
    network = make_network(len(token_ids)).train()
    if first_stage:
        load(network, token_ids, output)
    say(f"{sum(weight.numel() for weight in network.parameters()):,} weights, {len(token_ids)} tokens")
    watched = held_out_batches(WATCHED_SEEDS, token_ids)
    for number in range(first_stage, len(STAGES)):
        say(f"stage {number}: {STAGES[number]}")
        if number:
            torch.manual_seed(number)
        train_stage(network, number, token_ids, watched, output)
        load(network, token_ids, output)  # what float16 has kept


def train_stage(network: Any, number: int, token_ids: Sequence[int], watched: Sequence[Batch], output: Path) -> None:
    """One of `STAGES`."""
    stage, place_of = STAGES[number], places(token_ids)
    sizes = _HINT_SIZES[: stage.hints]
    seen_sizes = [size for at, size in enumerate(sizes) if at != _SECOND]
    hints = torch.nn.ModuleList([torch.nn.Linear(TEXT["hidden_size"], sum(seen_sizes))])
    if stage.hints > _SECOND:
        hints.append(torch.nn.Linear(TEXT["hidden_size"], _HINT_SIZES[_SECOND]))
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": 0.02},
        {
            "params": [*others, *hints.parameters()],
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        return float(warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, step / stage.fall_steps))) / 2))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    began, losses, seed = time.monotonic(), [], HELD_OUT_SEEDS + number * SEEDS_OF_A_STAGE
    for step in range(1, stage.steps + 1):
        batch = collate(
            [drawn_sample(seed + each, stage.kinds, stage.questions) for each in range(stage.clips)], place_of
        )
        seed += stage.clips
        scores, targets, features, placed = predict(network, batch)
        losses_of_tokens = functional.cross_entropy(scores, targets, reduction="none")
        loss = losses_of_tokens.mean() if stage.weighs_tokens else mean_of_answers(losses_of_tokens, batch)
        guesses = [*hints[0](features).split(seen_sizes, 1)]
        if stage.hints > _SECOND:
            guesses.insert(_SECOND, hints[1](placed))
        hint_loss = sum(map(functional.cross_entropy, guesses, batch.shown.unbind(1)), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        (loss + _HINT_SHARE * hint_loss).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((loss.item(), hint_loss.item()))
        if step % 50 == 0:
            answer_loss, mean_hint_loss = np.mean(losses[-50:], 0)
            say(f"step {step}, {time.monotonic() - began:.0f} s, loss {answer_loss:.4f}, of hints {mean_hint_loss:.4f}")
        if step % 70 == 0 or step == stage.steps:
            say(table(accuracy(network, watched)))
            save(network, token_ids, output)


def mean_of_answers(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean over answers of the mean over their tokens; losses float [N] are of `predict`."""
    numbers = batch.answers[batch.targets != IGNORED]
    counts = torch.bincount(numbers, minlength=len(batch.kinds))
    return (losses / counts[numbers]).sum() / len(batch.kinds)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deploy.demo_model.train")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="default: %(default)s")
    parser.add_argument("--first-stage", type=int, default=0, help="above 0: goes on from what OUTPUT holds")
    parsed = parser.parse_args()
    torch.set_num_threads(1)  # with more, threads wait for each other on a busy machine
    train(parsed.first_stage, parsed.output)

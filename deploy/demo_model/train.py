"""Train the demo's model on one core of a CPU, from nothing; some half an hour where that core is idle.

    python -m deploy.demo_model.train                       # writes weights.safetensors beside this file
    python -m deploy.demo_model.train --first-stage 1       # goes on from what stage 0 has written there

Weights are written at the end of each stage, and the next one begins with nothing else: a run that was stopped and goes on ends
with the weights of one that was not. The same releases and machine give the same weights. Clips are drawn anew for each step,
none twice. What is printed beside the loss is accuracy on encoded clips of seeds that training never draws, through the project's
pipeline.

The model learns sooner by hints: layers that are thrown away afterwards say of each temporal step what it shows and at which
second, and of each color in a question which shape has it and where that goes.
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
from deploy.demo_model.evaluate import held_out_samples, in_batches, places, table
from deploy.demo_model.network import accuracy, load, make_network, predict, save
from deploy.demo_model.samples import drawn_sample, vocabulary
from deploy.demo_model.story import COLORS, DIRECTIONS, HELD_OUT_SEEDS, SHAPES


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of steps in which the learning rate falls from one value to another, as half a cosine.

    Attributes:
        weighs_tokens: Each token of an answer counts the same, so the answers that tell all that happens outweigh those that name
            one thing; else each answer counts the same.
    """

    steps: int
    first_rate: float
    last_rate: float
    weighs_tokens: bool = False


STAGES = (
    Stage(1000, 2e-3, 1.5e-3, weighs_tokens=True),  # to see, and to tell all that happens
    Stage(1000, 1.5e-3, 1e-3),  # to look up what a question names
    Stage(600, 1e-3, 0),  # to be exact
)
CLIPS_OF_A_STEP = 20
WARM_UP_STEPS = 50
"""Of each stage, in which the learning rate rises from 0."""
SEEDS_OF_A_STAGE = 10_000_000
WATCHED_SEEDS = range(48)
"""Of the held-out clips that are looked at meanwhile; those of `evaluate` are others."""
_SHAPE_COUNT, _DIRECTION_COUNT = 1 + len(SHAPES), 1 + len(DIRECTIONS)
_HINTS = ((1 + len(COLORS), _SHAPE_COUNT, _DIRECTION_COUNT, 3), (10,), (_SHAPE_COUNT, _DIRECTION_COUNT))
"""Numbers of classes, for each of what `predict` gives for hints: the first four columns of `Batch.shown`, the last, and the
columns of `Batch.meant`."""
_HINT_SHARE = 0.5


def train(first_stage: int, output: Path) -> None:
    """Train, tell how it goes, and write the weights at the end of each stage."""
    torch.manual_seed(0)
    token_ids = vocabulary()
    network = make_network(len(token_ids)).train()
    if first_stage:
        load(network, token_ids, output)
    say(f"{sum(weight.numel() for weight in network.parameters()):,} weights, {len(token_ids)} tokens")
    watched = in_batches(held_out_samples(WATCHED_SEEDS), token_ids)
    for number in range(first_stage, len(STAGES)):
        say(f"stage {number}: {STAGES[number]}")
        train_stage(network, number, token_ids, watched)
        save(network, token_ids, output)
        load(network, token_ids, output)  # what float16 has kept


def train_stage(network: Any, number: int, token_ids: Sequence[int], watched: Sequence[Batch]) -> None:
    """One of `STAGES`."""
    stage, place_of = STAGES[number], places(token_ids)
    hints = torch.nn.ModuleList(torch.nn.Linear(TEXT["hidden_size"], sum(counts)) for counts in _HINTS)
    for weight in hints.parameters():
        torch.nn.init.zeros_(
            weight
        )  # while they know nothing, they change nothing of what an earlier stage has learned
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": 0.02},
        {"params": [*others, *hints.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        fallen = (1 - math.cos(math.pi * step / stage.steps)) / 2
        return min(1.0, (step + 1) / WARM_UP_STEPS) * (stage.first_rate + fallen * (stage.last_rate - stage.first_rate))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    began, losses, seed = time.monotonic(), [], HELD_OUT_SEEDS + number * SEEDS_OF_A_STAGE
    for step in range(1, stage.steps + 1):
        batch = collate([drawn_sample(seed + each) for each in range(CLIPS_OF_A_STEP)], place_of)
        seed += CLIPS_OF_A_STEP
        scores, targets, hinted = predict(network, batch)
        losses_of_tokens = functional.cross_entropy(scores, targets, reduction="none")
        loss = losses_of_tokens.mean() if stage.weighs_tokens else mean_of_answers(losses_of_tokens, batch)
        hint_loss = loss_of_hints(hints, hinted, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss + _HINT_SHARE * hint_loss).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((loss.item(), hint_loss.item()))
        if step % 50 == 0:
            answer_loss, mean_hint_loss = np.mean(losses[-50:], 0)
            say(f"step {step}, {time.monotonic() - began:.0f} s, loss {answer_loss:.4f}, of hints {mean_hint_loss:.4f}")
        if step % 100 == 0:
            say(table(accuracy(network, watched)))


def mean_of_answers(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean over answers of the mean over their tokens; losses float [N] are of `predict`."""
    numbers = batch.answers[batch.targets != IGNORED]
    counts = torch.bincount(numbers, minlength=len(batch.kinds))
    return (losses / counts[numbers]).sum() / len(batch.kinds)


def loss_of_hints(hints: torch.nn.ModuleList, hinted: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """The sum over all columns of `_HINTS`; what is hinted is of `predict`."""
    guesses = [
        guess
        for hint, states, counts in zip(hints, hinted, _HINTS, strict=True)
        for guess in hint(states).split(list(counts), 1)
    ]
    columns = [*batch.shown.unbind(1), *batch.meant.unbind(1)]
    return sum(map(functional.cross_entropy, guesses, columns), torch.zeros(()))


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deploy.demo_model.train")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="default: %(default)s")
    parser.add_argument(
        "--first-stage",
        type=int,
        choices=range(len(STAGES)),
        default=0,
        help="above 0: goes on from what OUTPUT holds, the weights of the stage before",
    )
    parsed = parser.parse_args()
    torch.set_num_threads(1)  # with more, threads wait for each other on a busy machine
    train(parsed.first_stage, parsed.output)

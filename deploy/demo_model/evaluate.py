"""How many answers about clips that the demo's model has not seen are right, and for how many clips all those of `make demo` are.

    python -m deploy.demo_model.evaluate [CLIPS]

Each clip is encoded and goes through the project's pipeline. An answer is right where every token of it, and its end, is the
likeliest: then greedy decoding gives it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deploy.demo_model.batches import Batch, collate
from deploy.demo_model.checkpoint import VOCABULARY_SIZE, WEIGHTS
from deploy.demo_model.network import accuracy, load, make_network
from deploy.demo_model.questions import demo_questions
from deploy.demo_model.samples import Sample, expected_prefix, held_out_sample, vocabulary
from deploy.demo_model.story import make_story

FIRST_SEED = 200_000
_BATCH_CLIPS = 16


def places(token_ids: Sequence[int]) -> npt.NDArray[Any]:
    """int64 [vocabulary]: the row of the small vocabulary for each token id, -1 for those without."""
    place_of = np.full(VOCABULARY_SIZE, -1, np.int64)
    place_of[token_ids] = np.arange(len(token_ids))
    return place_of


def held_out_samples(seeds: Iterable[int]) -> list[Sample]:
    """Clips with every kind of question.

    Raises:
        RuntimeError: Training writes other prompts than the service.
    """
    samples = []
    for seed in seeds:
        samples.append(held_out_sample(seed))
        if samples[-1].prefix_ids != expected_prefix(seed):
            raise RuntimeError(f"training writes other prompts than the service: held-out seed {seed}")
    return samples


def in_batches(samples: Sequence[Sample], token_ids: Sequence[int]) -> list[Batch]:
    """The samples, some side by side."""
    place_of = places(token_ids)
    return [collate(samples[at : at + _BATCH_CLIPS], place_of) for at in range(0, len(samples), _BATCH_CLIPS)]


def table(found: Mapping[str, tuple[int, int]]) -> str:
    """One line of what `accuracy` gives."""
    return "held out: " + ", ".join(f"{kind} {right / of:.3f} of {of}" for kind, (right, of) in found.items())


def main(clip_count: int) -> None:
    """Print accuracy by kind of question, and for how many clips the demo's three questions are all answered right."""
    token_ids = vocabulary()
    network = make_network(len(token_ids)).eval()
    load(network, token_ids, WEIGHTS)
    seeds = range(FIRST_SEED, FIRST_SEED + clip_count)
    samples = held_out_samples(seeds)
    print(table(accuracy(network, in_batches(samples, token_ids))))
    perfect_count = 0
    for seed, sample in zip(seeds, samples, strict=True):
        asked = dataclasses.replace(sample, questions=tuple(demo_questions(make_story(seed), seed)))
        right_count, question_count = accuracy(network, in_batches([asked], token_ids))["all"]
        perfect_count += right_count == question_count
    print(f"demos with every answer right: {perfect_count} of {clip_count}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if sys.argv[1:] else 200)

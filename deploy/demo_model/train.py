"""Train the demo's model on a CPU, from nothing; some half an hour on two cores.

    python -m deploy.demo_model.train                       # writes weights.safetensors beside this file
    python -m deploy.demo_model.train --steps 100 --output /tmp/weights.safetensors

The same torch release, machine and thread count give the same weights. Clips of training are drawn anew for each step; none is
seen twice. What is printed beside the loss is accuracy on encoded clips of seeds that training never draws, through the project's
pipeline: an answer is right where every token of it is the likeliest.

The vision encoder learns sooner by hints: a layer that is thrown away afterwards says of each temporal step what it shows.

Several questions share the clip before them: each sees the clip and itself, not the others.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from deploy.demo_model.checkpoint import EMBEDDING, TEXT, TOKEN_IDS, VOCABULARY_SIZE, WEIGHTS, configuration
from deploy.demo_model.samples import (
    GRID,
    STEP_ROWS,
    STEP_TOKENS,
    Sample,
    drawn_sample,
    expected_prefix,
    held_out_sample,
    model,
    question_ids,
    vocabulary,
)
from deploy.demo_model.story import COLORS, DIRECTIONS, HELD_OUT_SEEDS, SHAPES
from preprocessor.types.plan import Grid
from preprocessor.vision.positions import mrope_positions

from transformers import AttentionInterface, Qwen3VLForConditionalGeneration  # isort: skip

VIDEO_TOKEN = 151656
_IGNORED = -100
_HINTS = (len(COLORS), len(SHAPES), len(DIRECTIONS))
_HINT_SHARE = 0.3
_ATTENTION = "steps_of_one_size"


def steps_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each temporal step, all at once, since all have one size; [1, heads, rows, dim]."""
    queries, keys, values = (each[0].unflatten(1, (-1, STEP_ROWS)).transpose(0, 1) for each in (query, key, value))
    seen = functional.scaled_dot_product_attention(queries, keys, values, scale=scaling)
    return seen.transpose(1, 2).reshape(1, -1, *seen.shape[1::2]), None


AttentionInterface.register(_ATTENTION, steps_attention)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples side by side. B samples of S tokens at most.

    Attributes:
        ids: int64 [B, S], rows of the small vocabulary; 0 after a sample's end.
        targets: int64 [B, S], the token that follows; `_IGNORED` where it is not part of an answer.
        positions: int64 [3, B, S].
        mask: bool [B, 1, S, S], what each token sees.
        is_video: bool [B, S].
        rows: uint8 [R, 1536].
        grids: int64 [B, 3].
        shown: int64 [steps of all samples, 3], as in `Sample`.
        answers: int64 [B, S], number of the question whose answer is predicted here; -1 elsewhere.
        kinds: of each question.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    is_video: torch.Tensor
    rows: torch.Tensor
    grids: torch.Tensor
    shown: torch.Tensor
    answers: torch.Tensor
    kinds: tuple[str, ...]


def collate(samples: Sequence[Sample], place_of: np.ndarray) -> Batch:
    """Lay samples out.

    Args:
        place_of: int64 [vocabulary], the row of the small vocabulary for each token id.
    """
    laid_out = [[question_ids(question) for question in sample.questions] for sample in samples]
    lengths = [
        len(sample.prefix_ids) + sum(len(asked) + len(answer) for asked, answer in asks)
        for sample, asks in zip(samples, laid_out, strict=True)
    ]
    size, longest = len(samples), max(lengths)
    ids = np.zeros((size, longest), np.int64)
    targets = np.full((size, longest), _IGNORED, np.int64)
    answers = np.full((size, longest), -1, np.int64)
    positions = np.zeros((3, size, longest), np.int64)
    branch = np.full((size, longest), -1, np.int64)
    is_video = np.zeros((size, longest), bool)
    kinds: list[str] = []
    for row, (sample, asks) in enumerate(zip(samples, laid_out, strict=True)):
        prefix = np.array(sample.prefix_ids)
        end = len(prefix)
        ids[row, :end], branch[row, :end] = place_of[prefix], 0
        is_video[row, :end] = prefix == VIDEO_TOKEN
        starts = np.flatnonzero(is_video[row, :end])[::STEP_TOKENS]
        spans = np.stack([np.zeros_like(starts), starts, np.full_like(starts, STEP_TOKENS)], 1).astype(np.int32)
        grid = Grid(t=1, h=GRID[0] // 2, w=GRID[1] // 2)
        positions[:, row, :end], delta = mrope_positions(end, spans, [grid] * len(spans))
        following = end + delta
        for number, (question, (asked, answer)) in enumerate(zip(sample.questions, asks, strict=True), 1):
            text = place_of[np.array(asked + answer)]
            stop = end + len(text)
            ids[row, end:stop], branch[row, end:stop] = text, number
            positions[:, row, end:stop] = np.arange(following, following + len(text))
            begin = end + len(asked) - 1
            targets[row, begin : stop - 1] = text[len(asked) :]
            answers[row, begin : stop - 1] = len(kinds)
            kinds.append(question.kind)
            end = stop
    seen, seer = branch[:, None, :], branch[:, :, None]
    mask = ((seen == 0) | (seen == seer)) & np.tri(longest, dtype=bool)
    mask[:, range(longest), range(longest)] = True  # what follows a sample's end sees something, or it has no softmax
    rows = np.concatenate([sample.rows for sample in samples])
    grids = [[len(sample.rows) // STEP_ROWS, *GRID] for sample in samples]
    return Batch(
        ids=torch.from_numpy(ids),
        targets=torch.from_numpy(targets),
        positions=torch.from_numpy(positions),
        mask=torch.from_numpy(mask[:, None]),
        is_video=torch.from_numpy(is_video),
        rows=torch.from_numpy(rows),
        grids=torch.tensor(grids),
        shown=torch.from_numpy(np.concatenate([sample.shown for sample in samples])),
        answers=torch.from_numpy(answers),
        kinds=tuple(kinds),
    )


def predict(network: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the model.

    Returns:
        Scores over the small vocabulary and one more for all tokens beside it, float [N, V + 1]; their targets, int64 [N]; and
        the mean feature of each temporal step, float [steps, hidden].
    """
    pixels = batch.rows.float().div_(127.5).sub_(1)
    cuts = torch.tensor([0, len(pixels)], dtype=torch.int32)
    seen = network.model.visual(pixels, grid_thw=batch.grids, cu_seqlens=cuts)
    language = network.model.language_model
    embeddings = language.embed_tokens(batch.ids)
    embeddings = embeddings.masked_scatter(batch.is_video[..., None], seen.pooler_output)
    hidden = language(
        inputs_embeds=embeddings,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        visual_pos_masks=batch.is_video,
        deepstack_visual_embeds=seen.deepstack_features,
        use_cache=False,
    ).last_hidden_state
    chosen = batch.targets != _IGNORED
    scores = hidden[chosen] @ language.embed_tokens.weight.T
    # Tokens without a row score 0 each, and there are so many of them.
    others = torch.full((len(scores), 1), math.log(VOCABULARY_SIZE - scores.shape[1]))
    features = seen.pooler_output.unflatten(0, (-1, STEP_TOKENS)).mean(1)
    return torch.cat([scores, others], 1), batch.targets[chosen], features


def accuracy(network: Any, batches: Sequence[Batch]) -> dict[str, tuple[int, int]]:
    """Of each kind of question, and of "all": right answers, answers."""
    right, asked = Counter[str](), Counter[str]()
    with torch.no_grad():
        for batch in batches:
            scores, targets, _ = predict(network, batch)
            numbers = batch.answers[batch.targets != _IGNORED]
            wrong = set(numbers[scores.argmax(1) != targets].tolist())
            for number, kind in enumerate(batch.kinds):
                for name in (kind, "all"):
                    asked[name] += 1
                    right[name] += number not in wrong
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def save(network: Any, token_ids: Sequence[int], path: Path) -> None:
    """Write the weights in float16, the embedding with the rows of `token_ids` alone."""
    weights = {
        name: weight.half().contiguous() for name, weight in network.state_dict().items() if name != "lm_head.weight"
    }
    assert EMBEDDING in weights
    partial = path.with_suffix(".partial")
    save_file(weights | {TOKEN_IDS: torch.tensor(token_ids, dtype=torch.int32)}, partial)
    partial.replace(path)


def train(arguments: argparse.Namespace) -> None:
    """Train, tell how it goes, and write the weights now and then."""
    torch.manual_seed(arguments.seed)
    token_ids = vocabulary()
    place_of = np.full(VOCABULARY_SIZE, -1, np.int64)
    place_of[token_ids] = np.arange(len(token_ids))
    network = Qwen3VLForConditionalGeneration(configuration(len(token_ids))).train()
    network.model.visual.config._attn_implementation = _ATTENTION
    count = sum(weight.numel() for weight in network.parameters())
    say(f"{count:,} weights, {len(token_ids)} tokens; {len(model().tokenizer):,} tokens in the tokenizer")

    held_out = [held_out_sample(seed) for seed in range(arguments.held_out)]
    for seed, sample in enumerate(held_out):
        if sample.prefix_ids != expected_prefix(seed):
            raise RuntimeError(f"training writes other prompts than the service: held-out seed {seed}")
    held_out_batches = [collate(held_out[at : at + 16], place_of) for at in range(0, len(held_out), 16)]
    say(f"{len(held_out)} held-out clips, {sum(len(each.kinds) for each in held_out_batches)} questions")

    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    hints = torch.nn.Linear(TEXT["hidden_size"], sum(1 + size for size in _HINTS))
    groups = [
        {"params": decayed, "weight_decay": 0.02},
        {"params": [*others, *hints.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.98))

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / arguments.warm_up)
        return float(warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, step / arguments.steps))) / 2))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    began, losses, seed = time.monotonic(), [], HELD_OUT_SEEDS + arguments.seed * 10_000_000
    for step in range(1, arguments.steps + 1):
        batch = collate([drawn_sample(seed + each) for each in range(arguments.batch)], place_of)
        seed += arguments.batch
        scores, targets, features = predict(network, batch)
        loss = functional.cross_entropy(scores, targets)
        guesses = hints(features).split([1 + size for size in _HINTS], 1)
        hint_loss = sum(map(functional.cross_entropy, guesses, batch.shown.unbind(1)), torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        (loss + _HINT_SHARE * hint_loss).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((loss.item(), hint_loss.item()))
        if step % 50 == 0 or step in (5, 20):
            answer_loss, hint_loss = np.mean(losses[-50:], 0)
            say(f"step {step}, {time.monotonic() - began:.0f} s, loss {answer_loss:.4f}, of hints {hint_loss:.4f}")
        if step % arguments.every == 0 or step == arguments.steps:
            found = accuracy(network, held_out_batches)
            say("held out: " + ", ".join(f"{kind} {right / of:.3f}" for kind, (right, of) in found.items()))
            save(network, token_ids, arguments.output)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m deploy.demo_model.train")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=24, help="clips a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--warm-up", type=int, default=100, help="steps")
    parser.add_argument("--held-out", type=int, default=64, help="clips")
    parser.add_argument("--every", type=int, default=250, help="steps between two looks at held-out clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    train(parsed)

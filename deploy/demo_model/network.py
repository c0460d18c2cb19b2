"""The model with the small vocabulary that it is trained with: row n of its embedding is token `token_ids[n]`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from deploy.demo_model.batches import IGNORED, Batch
from deploy.demo_model.checkpoint import EMBEDDING, TOKEN_IDS, VOCABULARY_SIZE, configuration
from deploy.demo_model.samples import STEP_ROWS, STEP_TOKENS

from transformers import AttentionInterface, Qwen3VLForConditionalGeneration  # isort: skip

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


def make_network(token_count: int) -> Any:
    """A new one, with random weights."""
    network = Qwen3VLForConditionalGeneration(configuration(token_count))
    network.model.visual.config._attn_implementation = _ATTENTION
    return network


def predict(network: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run the model.

    Returns:
        Scores over the small vocabulary and one more for all tokens beside it, float [N, V + 1]; their targets, int64 [N]; and
        what hints are read from: float [steps, hidden], means over each temporal step, of its features and of what the language
        model's second layer makes of them; and float [tokens of `Batch.named`, hidden] of that layer.
    """
    pixels = batch.rows.float().div_(127.5).sub_(1)
    cuts = torch.tensor([0, len(pixels)], dtype=torch.int32)
    seen = network.model.visual(pixels, grid_thw=batch.grids, cu_seqlens=cuts)
    language = network.model.language_model
    embeddings = language.embed_tokens(batch.ids)
    embeddings = embeddings.masked_scatter(batch.is_video[..., None], seen.pooler_output)
    seen_by_layers = language(
        inputs_embeds=embeddings,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        visual_pos_masks=batch.is_video,
        deepstack_visual_embeds=seen.deepstack_features,
        use_cache=False,
        output_hidden_states=True,
    )
    hidden = seen_by_layers.last_hidden_state
    chosen = batch.targets != IGNORED
    scores = hidden[chosen] @ language.embed_tokens.weight.T
    # Tokens without a row score 0 each, and there are so many of them.
    others = torch.full((len(scores), 1), math.log(VOCABULARY_SIZE - scores.shape[1]))
    second_layer = seen_by_layers.hidden_states[2]
    features, placed = (
        each.unflatten(0, (-1, STEP_TOKENS)).mean(1) for each in (seen.pooler_output, second_layer[batch.is_video])
    )
    return torch.cat([scores, others], 1), batch.targets[chosen], (features, placed, second_layer[batch.named])


def accuracy(network: Any, batches: Sequence[Batch]) -> dict[str, tuple[int, int]]:
    """Of each kind of question, and of "all": right answers, answers."""
    right, asked = Counter[str](), Counter[str]()
    with torch.no_grad():
        for batch in batches:
            scores, targets, *_ = predict(network, batch)
            numbers = batch.answers[batch.targets != IGNORED]
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


def load(network: Any, token_ids: Sequence[int], path: Path) -> None:
    """Read what `save` has written; it has a row for each of these tokens."""
    weights = {name: weight.float() for name, weight in load_file(path).items() if name != TOKEN_IDS}
    place_of = {token_id: place for place, token_id in enumerate(load_file(path)[TOKEN_IDS].tolist())}
    rows = weights[EMBEDDING][[place_of[token_id] for token_id in token_ids]]
    network.load_state_dict(weights | {EMBEDDING: rows, "lm_head.weight": rows})

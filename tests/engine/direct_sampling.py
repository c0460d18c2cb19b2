"""What transformers itself answers under penalties, and how likely it finds each token; as `direct_answers.py`.

    python direct_sampling.py MODEL PROMPT.npz MAX_TOKENS

MODEL is a checkpoint, or the directory of a served model whose weights `1/checkpoint.py` makes. Prints JSON.
"""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.engine.direct_answers import model_inputs

# Below their neutral values they encourage tokens, which changes an answer that repeats nothing by itself.
REPETITION, PRESENCE, FREQUENCY, TOP = 0.5, -1.5, -0.5, 3


def load(model: str) -> torch.nn.Module:
    if (Path(model) / "1/checkpoint.py").exists():
        sys.path.insert(0, model)
        return importlib.import_module("1.checkpoint").build_tiny_model(seed=0)
    importlib.import_module("tests.golden.huggingface")  # makes torchvision importable, which transformers looks for
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()


def main(model_path: str, prompt_path: str, max_tokens: str) -> None:
    model, token_count = load(model_path), int(max_tokens)
    with np.load(prompt_path) as prompt:
        inputs = model_inputs(dict(prompt))
    length = inputs["input_ids"].shape[1]
    greedy = {"max_new_tokens": token_count, "do_sample": False}
    plain = model.generate(**inputs, **greedy, output_logits=True, return_dict_in_generate=True)
    ids = plain.sequences[0, length:].tolist()
    logprobs = [torch.log_softmax(scores[0].float(), -1) for scores in plain.logits]
    tops = [torch.topk(each, TOP) for each in logprobs]
    repeated = model.generate(**inputs, **greedy, repetition_penalty=REPETITION)
    print(
        json.dumps(
            {
                "ids": ids,
                "logprobs": [each[token_id].item() for each, token_id in zip(logprobs, ids, strict=True)],
                "top": [list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) for top in tops],
                "repetition": repeated[0, length:].tolist(),
                "penalties": with_penalties(model, inputs["input_ids"], token_count),
            }
        )
    )


def with_penalties(model: torch.nn.Module, input_ids: torch.Tensor, token_count: int) -> list[int]:
    """Of a prompt of text: transformers has no presence and no frequency penalty, so each token is chosen here."""
    counts: Counter[int] = Counter()
    answer: list[int] = []
    for _ in range(token_count):
        with torch.no_grad():
            scores = model(input_ids=input_ids).logits[0, -1].float()
        for token_id, count in counts.items():
            scores[token_id] -= PRESENCE + FREQUENCY * count
        answer.append(int(scores.argmax()))
        counts[answer[-1]] += 1
        input_ids = torch.cat([input_ids, torch.tensor([[answer[-1]]])], dim=1)
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])

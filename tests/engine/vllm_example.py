"""What deploy/examples/to_vllm.py is answered, beside what vLLM answers to the same files: the tokens must be the same.

python vllm_example.py CHECKPOINT FOLDER, in vLLM's own Python. FOLDER has NAME.safetensors and NAME.media.npz: `vllm_own_input`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from vllm import EngineArgs, LLMEngine

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]
to_vllm = importlib.import_module("deploy.examples.to_vllm")
media_data = importlib.import_module("vllm_own_input").media_data


def main(checkpoint: str, folder: str) -> None:
    engine = LLMEngine.from_engine_args(
        EngineArgs(checkpoint, dtype="float32", max_model_len=8192, enforce_eager=True, enable_prefix_caching=False)
    )
    paths = sorted(map(str, Path(folder).glob("*.safetensors")))
    ours = dict(to_vllm.answers(engine, paths))
    assert sorted(ours) == paths
    for path in paths:
        with np.load(Path(path).with_suffix(".media.npz")) as media:
            prompt = {"prompt": str(media["text"]), "multi_modal_data": media_data(media)}
        engine.add_request(path, prompt, to_vllm.SAMPLING)
    theirs: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        theirs |= {answer.request_id: answer for answer in engine.step() if answer.finished}
    for path in paths:
        assert ours[path].prompt_token_ids == theirs[path].prompt_token_ids, path
        assert ours[path].outputs[0].token_ids == theirs[path].outputs[0].token_ids, path
    assert len({tuple(answer.outputs[0].token_ids) for answer in ours.values()}) > 3, "pixels make a difference"
    print("equal")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Compares what vLLM's gRPC service makes of our messages with what vLLM itself makes of the same pictures.

python vllm_own_tensors_input.py CHECKPOINT FOLDER, in vLLM's own Python. No engine is started: equal inputs have equal answers.

FOLDER has for each prompt NAME.bin, a `GenerateRequest`, and NAME.npz: `text` rendered and the images in it, uint8 [H, W, 3], as
`image0` ….
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_servicer.vllm.servicer import VllmEngineServicer
from transformers import AutoTokenizer
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs, TimingContext
from vllm_own_input import compare


def main(checkpoint: str, folder: str) -> None:
    config = AsyncEngineArgs(model=checkpoint, dtype="float32", max_model_len=2048, mm_processor_cache_gb=0)
    model_config = config.create_engine_config().model_config
    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    servicer = SimpleNamespace(engine=SimpleNamespace(model_config=model_config))
    count = 0
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path) as media:
            images = [Image.fromarray(media[name]) for name in sorted(media) if name.startswith("image")]
            token_ids = tokenizer(str(media["text"]), add_special_tokens=False)["input_ids"]
        items = processor.info.parse_mm_data({"image": images})
        own = processor.apply(ProcessorInputs(token_ids, items), TimingContext(enabled=False))
        request = pb.GenerateRequest.FromString(path.with_suffix(".bin").read_bytes())
        ours = VllmEngineServicer._build_preprocessed_mm_inputs(servicer, request.tokenized, [request.mm_inputs])
        compare(path.name, own, ours)
        count += 1
    print("equal", count)


if __name__ == "__main__":
    main(*sys.argv[1:])

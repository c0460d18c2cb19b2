"""Compares the inputs that this project makes for vLLM's engine with what vLLM itself makes of the same files and frames.

python vllm_own_input.py CHECKPOINT FOLDER [CHECKPOINT FOLDER …], in vLLM's own Python. No engine is started: equal inputs have
equal answers. The last lines are one a checkpoint: "equal uint8" or "equal floats", by the pixels that vLLM takes of the model,
else what differs.

FOLDER has for each prompt NAME.npz, the contract's tensors, and NAME.media.npz: `text` rendered (before which special tokens are
put where `adds_special_tokens` says so), and what is in it in order,
`images` uint8 [H, W, 3] as `image0` …, clips as `frames0` uint8 [T, H, W, 3], `indices0` int64 [T], `rate0` and `total0`. What
`vlm_vllm` makes of the tensors is compared, and what vLLM's gRPC service makes of NAME.bin, a `GenerateRequest`, where there is
one.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_servicer.vllm.servicer import VllmEngineServicer
from transformers import AutoTokenizer
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs, TimingContext

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from engine_client.contract.assembler import PromptAssembler  # noqa: E402
from engine_client.triton.backend.rows import TorchRows  # noqa: E402

_PACKAGE = ModuleType("vlm_vllm_1")
_PACKAGE.__path__ = [str(ROOT / "deploy/triton/models/vlm_vllm/1")]
sys.modules["vlm_vllm_1"] = _PACKAGE

VIDEO_PADS = {"internvl": {"<video>": "<IMG_CONTEXT>"}}
"""vLLM writes other placeholders into a video than transformers; features replace either."""
PROMPT_FIELDS = {"video_num_soft_tokens", "video_timestamps", "timestamps"}
"""Of these vLLM makes the prompt's text; its model does not read them (gemma4_mm.py, qwen3_vl.py)."""
WIRE_FIELDS = {"patches_per_image", "patches_per_video", "video_token_id"}
"""They say how a message is divided, or which of the `VIDEO_PADS` there are."""


def main(*paths: str) -> None:
    results = []
    for checkpoint, folder in zip(paths[::2], paths[1::2], strict=True):
        try:
            results.append(f"equal {compare_prompts(checkpoint, folder)}")
        except Exception as failure:
            traceback.print_exc()
            results.append(f"{type(failure).__name__}: {failure}".splitlines()[0])
    print(*results, sep="\n")


def compare_prompts(checkpoint: str, folder: str) -> str:
    """Compare all prompts of a folder; returns what vLLM takes of the model's pixels."""
    facts, items, inputs = (importlib.import_module(f"vlm_vllm_1.{name}") for name in ("facts", "items", "inputs"))
    config = AsyncEngineArgs(model=checkpoint, dtype="float32", max_model_len=8192, mm_processor_cache_gb=0)
    vllm_config = config.create_engine_config()
    processor = MULTIMODAL_REGISTRY.create_processor(vllm_config.model_config)
    known = facts.read_facts(vllm_config, 0, processor.info.get_hf_processor().image_processor)
    servicer = SimpleNamespace(engine=SimpleNamespace(model_config=vllm_config.model_config))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for path in sorted(Path(folder).glob("*.media.npz")):
        with np.load(path) as media:
            adds_special_tokens = "adds_special_tokens" in media and bool(media["adds_special_tokens"])
            token_ids = tokenizer(str(media["text"]), add_special_tokens=adds_special_tokens)["input_ids"]
            own = processor.apply(
                ProcessorInputs(token_ids, processor.info.parse_mm_data(media_data(media))),
                TimingContext(enabled=False),
            )
        with np.load(str(path).replace(".media", "")) as arrays:
            tensors = dict(arrays)
        assembler = PromptAssembler(tensors, None, known.layout, TorchRows(torch.device("cpu")), is_whole=True)
        read = items.read_items(tensors, assembler.prompt, known)
        rows = assembler.rows.between(0, assembler.rows.row_count) if read else torch.empty(0)
        ours = inputs.build_input(assembler.prompt, read, rows, known)
        for pads, pad in VIDEO_PADS.get(known.model_type, {}).items():
            token_id = tokenizer.convert_tokens_to_ids(pads)
            own["prompt_token_ids"] = [
                tokenizer.convert_tokens_to_ids(pad) if one == token_id else one for one in own["prompt_token_ids"]
            ]
        compare(path.name, own, ours)
        message = Path(str(path).replace(".media.npz", ".bin"))
        if message.exists():
            request = pb.GenerateRequest.FromString(message.read_bytes())
            batches = [request.mm_inputs, *request.extra_mm_inputs] if request.HasField("mm_inputs") else []
            ours = VllmEngineServicer._build_preprocessed_mm_inputs(servicer, request.tokenized, batches)
            compare(message.name, own, ours)
    return "uint8" if known.normalizes else "floats"


def media_data(media: Any) -> dict[str, list[Any]]:
    """As a caller of vLLM gives it."""
    data: dict[str, list[Any]] = {}
    for name in sorted(media):
        if name.startswith("image"):
            data.setdefault("image", []).append(Image.fromarray(media[name]))
        elif name.startswith("frames"):
            number, rate = name.removeprefix("frames"), float(media["rate" + name.removeprefix("frames")])
            total = int(media["total" + number])
            metadata = {
                "fps": rate,
                "duration": total / rate,
                "total_num_frames": total,
                "frames_indices": media["indices" + number].tolist(),
                "video_backend": "opencv",
                "do_sample_frames": False,
            }
            data.setdefault("video", []).append((media[name], metadata))
    return data


def compare(name: str, own: Any, ours: Any) -> None:
    """Token ids, ranges, and each tensor that we send."""
    assert ours["prompt_token_ids"] == own["prompt_token_ids"], f"{name}: token ids differ"
    placeholders = ours.get("mm_placeholders", {})  # not there for text alone
    assert placeholders.keys() == own["mm_placeholders"].keys(), name
    for modality, ranges in placeholders.items():
        for one, other in zip(ranges, own["mm_placeholders"][modality], strict=True):
            embeds = [each.extract_embeds_range() for each in (one, other)]
            assert embeds[0] == embeds[1], f"{name}: {modality} features go to {embeds}"
        for sent, made in zip(ours["mm_kwargs"][modality], own["mm_kwargs"][modality], strict=True):
            assert made.keys() - sent.keys() <= PROMPT_FIELDS, f"{name}: vLLM itself has {made.keys()}"
            for key, element in sent.items():
                if key in WIRE_FIELDS:
                    continue
                assert element.data.dtype == made[key].data.dtype, f"{name}: {key} is {made[key].data.dtype}"
                data = element.data if made[key].data.ndim else element.data.squeeze()  # the wire has no scalars
                assert torch.equal(data, made[key].data), f"{name}: {key} differs"


if __name__ == "__main__":
    main(*sys.argv[1:])

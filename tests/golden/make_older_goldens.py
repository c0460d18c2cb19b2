"""Write older_goldens.json: what older releases of transformers make of the Qwen3-VL cases. From the repository's root:

    pip install --no-deps --target OLDER/5.9.0 transformers==5.9.0 huggingface_hub==1.33.0 tokenizers==0.22.2
    pip install --no-deps --target OLDER/4.57.6 transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
    python -m tests.golden.make_older_goldens OLDER

Before 5.10 the vision markers around a video are replaced together with its placeholder: `VideoMarkers.REPLACE`. Text, frames
and tokenizer are those of `make_goldens`; placeholders, token ids and rotary positions are the older release's own. It runs in a
process of its own, which imports nothing of this project: `python make_older_goldens.py --answer FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDENS = Path(__file__).parent / "older_goldens.json"
RELEASES = ("5.9.0", "4.57.6")
PAD_IDS = (151655, 151656)


def main(older: Path) -> None:
    recorded: dict[str, Any] = {"source": "transformers, Qwen3VLProcessor.__call__ and Qwen3VLModel.get_rope_index"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_questions(folder)
        for release in RELEASES:
            environment = os.environ | {"PYTHONPATH": str((older / release).resolve())}
            command = [sys.executable, __file__, "--answer", str(folder)]
            subprocess.run(command, env=environment, check=True)
            recorded[release] = json.loads((folder / "answers.json").read_text())
    GOLDENS.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"{GOLDENS}: {[len(recorded[release]['cases']) for release in RELEASES]} cases")


def _write_questions(folder: Path) -> None:
    """What an answer needs, without anything that only this project or this release of transformers can read."""
    from preprocessor.types.request import Modality
    from tests.golden import oracle
    from tests.golden.cases import older_cases
    from tests.golden.huggingface import CLASSES, processor_of  # first: torchvision is imported there
    from tests.loading import load_family_model

    from transformers.image_utils import load_image  # isort: skip

    model = load_family_model("qwen3-vl")
    processor, classes = processor_of(model), CLASSES["qwen3_vl"]
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    for name, part in (("image", processor.image_processor), ("video", processor.video_processor)):
        (folder / f"{name}.json").write_text(json.dumps({**json.loads(part.to_json_string()), "size": dict(part.size)}))
    questions = {}
    for number, (name, request) in enumerate(older_cases().items()):
        text, media = oracle.rendered(processor, request)
        videos = [medium for medium in media if medium.modality is Modality.VIDEO]
        images = [medium for medium in media if medium.modality is Modality.IMAGE]
        clips = [oracle.sampled_clip(medium, processor.video_processor) for medium in videos]
        arrays = {f"video{index}": clip.frames for index, clip in enumerate(clips)}
        for index, medium in enumerate(images):
            arrays[f"image{index}"] = np.asarray(load_image(oracle.data_url(medium.data)))
        np.savez(folder / f"{number}.npz", **arrays)  # type: ignore[arg-type]
        questions[name] = {
            "text": text,
            "arrays": f"{number}.npz",
            "clips": [{"total": clip.total, "rate": clip.rate, "indices": clip.indices} for clip in clips],
            "image_size": oracle._budget(images, processor.image_processor, classes)["size"],
            "video_size": oracle._budget(videos, processor.video_processor, classes)["size"],
        }
    (folder / "questions.json").write_text(json.dumps(questions))


def _answer(folder: Path) -> None:
    """In the older release: its answers to the questions in a folder."""
    import torch

    _import_torchvision(torch)
    import transformers
    from transformers.models.qwen2_vl import image_processing_qwen2_vl, image_processing_qwen2_vl_fast
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    image_class = getattr(image_processing_qwen2_vl_fast, "Qwen2VLImageProcessorFast", None)
    image_class = image_class or image_processing_qwen2_vl.Qwen2VLImageProcessor
    image_settings = json.loads((folder / "image.json").read_text())
    video_settings = json.loads((folder / "video.json").read_text())
    for settings in (image_settings, video_settings):
        for name in [name for name in settings if name.endswith("_type")]:
            del settings[name]
    # It asks for Qwen's tokenizer class, of which the file that was read here is as good a tokenizer.
    transformers.Qwen3VLProcessor.check_argument_for_proper_class = lambda self, name, argument: type(argument)
    processor = transformers.Qwen3VLProcessor(
        image_processor=image_class(**image_settings),
        tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
        video_processor=Qwen3VLVideoProcessor(**video_settings),
    )
    with torch.device("meta"):
        model = transformers.Qwen3VLModel(_tiny_config(transformers))
    answers = {}
    for name, asked in json.loads((folder / "questions.json").read_text()).items():
        arrays = np.load(folder / asked["arrays"])
        clips = asked["clips"]
        metadata = [
            VideoMetadata(
                total_num_frames=clip["total"],
                fps=clip["rate"],
                duration=clip["total"] / clip["rate"],
                frames_indices=list(clip["indices"]),
            )
            for clip in clips
        ]
        output = processor(
            text=[asked["text"]],
            images=[arrays[one] for one in arrays if one.startswith("image")] or None,
            videos=[arrays[f"video{index}"] for index in range(len(clips))] or None,
            return_tensors="pt",
            images_kwargs={"size": asked["image_size"]},
            videos_kwargs={"size": asked["video_size"], "do_sample_frames": False, "video_metadata": metadata},
        )
        grids = {key: output.get(key) for key in ("image_grid_thw", "video_grid_thw")}
        extra = {"mm_token_type_ids": output["mm_token_type_ids"]} if "mm_token_type_ids" in output else {}
        positions, delta = model.get_rope_index(input_ids=output["input_ids"], **grids, **extra)
        ids = output["input_ids"][0].numpy().astype(np.int32)
        answers[name] = {
            "length": len(ids),
            "first": ids[:12].tolist(),
            "last": ids[-12:].tolist(),
            "token_ids": digest(ids),
            "runs": _runs(ids),
            "mrope_position_ids": digest(positions[:, 0].numpy().astype(np.int32)),
            "mrope_position_delta": int(delta),
        }
    stamp = {"transformers": transformers.__version__, "torch": torch.__version__}
    (folder / "answers.json").write_text(json.dumps({"made_with": stamp, "cases": answers}))


def _tiny_config(transformers: Any) -> Any:
    text: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 2,
    }
    text |= {"num_key_value_heads": 2, "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
    vision = {"depth": 1, "num_heads": 2, "hidden_size": 64, "intermediate_size": 64, "out_hidden_size": 64}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision)


def _import_torchvision(torch: Any) -> None:
    """As tests.golden.huggingface does: torchvision beside a CPU-only torch knows none of its operators."""
    register_fake = torch.library.register_fake

    def skip_missing_operators(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register_fake(op, *args, **kwargs)

    torch.library.register_fake = skip_missing_operators
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register_fake


def digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _runs(ids: npt.NDArray[np.int32]) -> list[list[int]]:
    """Offset and length of each run of placeholders."""
    is_pad = np.concatenate([[False], np.isin(ids, PAD_IDS), [False]])
    starts, stops = np.flatnonzero(np.diff(is_pad.astype(np.int8))).reshape(-1, 2).T
    return np.stack([starts, stops - starts], axis=1).tolist()


if __name__ == "__main__":
    if sys.argv[1] == "--answer":
        _answer(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))

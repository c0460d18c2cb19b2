"""The ways from image files in memory to Qwen3-VL pixels; the rules of `paths` hold."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    TextPart,
)
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import normalization_table, normalize_rows
from tests.bench.contest import Disagreement, Result, stage
from tests.bench.scripts import auto_processor, chat_text, file_of
from tests.golden.huggingface import processor_of

from transformers.image_utils import load_image  # isort: skip  # torchvision is imported above


@dataclass(frozen=True, slots=True, eq=False)
class ImageJob:
    """Images of one prompt.

    Attributes:
        output_bytes: Size of our uint8 patches, for `bound`.
        requests: What `ours` is asked, by pixel form.
    """

    model: Model
    files: tuple[bytes, ...]
    output_bytes: int
    requests: Mapping[PixelForm, PreparationRequest]


def make_image_job(model: Model, files: tuple[bytes, ...], text: str) -> ImageJob:
    media = tuple(Media(f"photo {index}", Modality.IMAGE, data) for index, data in enumerate(files))
    prompt = ChatPrompt((Message("user", (*(MediaPart(medium.key) for medium in media), TextPart(text))),))
    requests = {form: PreparationRequest(prompt, media, form) for form in (PixelForm.UINT8, PixelForm.FP32)}
    planned = pipeline.plan(model, requests[PixelForm.UINT8], Limits())
    return ImageJob(model, files, planned.pixel_bytes, requests)


def pil_and_hf(job: ImageJob) -> Result:
    """Pillow, then Hugging Face's image processor: pixels alone."""
    timings = Timings()
    with stage(timings, "decode"):
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in job.files]
    with stage(timings, "process"):
        output = processor_of(job.model).image_processor(images=pictures, return_tensors="pt")
    return Result(output["pixel_values"].numpy(), output["image_grid_thw"].tolist(), len(pictures), timings)


def hf(job: ImageJob) -> Result:
    """`AutoProcessor`, from the files, as a script would: images by `load_image`, then the processor on them and the prompt."""
    timings = Timings()
    processor = auto_processor(job.model)
    with stage(timings, "decode"):
        pictures = [load_image(str(file_of(data))) for data in job.files]
    with stage(timings, "process"):
        text = chat_text(processor, job.requests[PixelForm.UINT8])
        output = processor(text=[text], images=pictures, return_tensors="pt")
    return Result(output["pixel_values"].numpy(), output["image_grid_thw"].tolist(), len(pictures), timings)


def bound(job: ImageJob) -> Result:
    """Decode every picture as it is stored, and write the output's bytes once."""
    timings = Timings()
    with stage(timings, "decode"):
        for data in job.files:
            Image.open(io.BytesIO(data)).load()
    with stage(timings, "write"):
        pixels = np.full(job.output_bytes, 127, np.uint8)
    return Result(pixels, None, len(job.files), timings)


def ours(job: ImageJob) -> Result:
    """`pipeline.prepare`: uint8 patches, and with them plan, token ids and positions."""
    return _prepare(job, PixelForm.UINT8)


def ours_fp32(job: ImageJob) -> Result:
    """The same, ended in the normalized float32 that Hugging Face ends in."""
    return _prepare(job, PixelForm.FP32)


ImagePath = Callable[[ImageJob], Result]

IMAGE_PATHS: dict[str, ImagePath] = {
    "pil + hf": pil_and_hf,
    "hf": hf,
    "ours": ours,
    "ours FP32": ours_fp32,
    "bound": bound,
}


def compare_image_paths(job: ImageJob, paths: Mapping[str, ImagePath] = IMAGE_PATHS) -> None:
    """Run every path once and compare what they make.

    Raises:
        Disagreement: A grid, or one value of the pixels, differs.
    """
    results = {name: path(job) for name, path in paths.items()}
    expected = results["pil + hf"]
    table = normalization_table(job.model.image, PixelForm.FP32)
    normalized = np.empty(results["ours"].pixels.shape, np.float32)
    normalize_rows(results["ours"].pixels, table, normalized)
    made = {"hf": results["hf"].pixels, "ours": normalized, "ours FP32": results["ours FP32"].pixels}
    for name, pixels in made.items():
        if results[name].grid_thw != expected.grid_thw:
            raise Disagreement(f"{name} has grids {results[name].grid_thw}, pil + hf {expected.grid_thw}")
        if not np.array_equal(pixels, expected.pixels):
            raise Disagreement(f"the pixels of {name} are not exactly what pil + hf makes")
    if results["bound"].pixels.nbytes != results["ours"].pixels.nbytes:
        raise Disagreement(f"bound wrote {results['bound'].pixels.nbytes} bytes, ours {results['ours'].pixels.nbytes}")


def _prepare(job: ImageJob, form: PixelForm) -> Result:
    prepared = pipeline.prepare(job.model, job.requests[form])
    assert prepared.plan.pixels is not None
    pixels = prepared.tensors[prepared.plan.pixels.name]
    return Result(pixels, prepared.tensors["grid_thw"].tolist(), len(prepared.plan.items), prepared.timings)

"""An answer's messages → rows of figures, and of settings with who decided each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from preprocessor.prompt_page.facts import Facts
from preprocessor.prompt_page.page import Estimate, Pair, Setting, Stage
from preprocessor.v1 import preprocessor_pb2 as pb

_PLANNING = ("plan", "tokenize")
_PIXELS = ("decode", "resize", "patch", "normalize")
_BASES = {pb.SAMPLING_BASIS_INDEX: "frame numbers", pb.SAMPLING_BASIS_TIME: "presentation times"}
_MODEL, _DEFAULT = "the model's configuration", "default"


def stages(report: pb.Report) -> Iterator[Stage]:
    return (Stage(one.stage, one.wall_ms, one.cpu_ms) for one in report.stages)


def estimates(report: pb.Report, facts: Facts | None) -> Iterator[Estimate]:
    """What `preprocessor plan` tells of such a request, beside what it took."""
    if facts is None or facts.request_seconds is None:
        return
    spent = {one.stage: one.cpu_ms for one in report.stages}
    for name, seconds, of_it in (
        ("headers and tokens", facts.planning_seconds, _PLANNING),
        ("pixels", facts.pixel_seconds, _PIXELS),
        ("a request to a service, all of it", facts.request_seconds, ()),
    ):
        measured = sum(spent.get(stage, 0.0) for stage in of_it) if of_it else None
        yield Estimate(name, None if seconds is None else seconds * 1e3, measured)


def tensor_rows(tensors: Iterable[pb.Tensor]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, shape and size of each."""
    for one in tensors:
        dtype = name_of(pb.DataType, one.data_type, "DATA_TYPE_")
        yield one.name, dtype, " × ".join(map(str, one.shape)) or "scalar", size(one.total_bytes)


def settings(header: pb.Header, spec: pb.PrepareSpec, model: pb.Model | None) -> Iterator[Setting]:
    """What decided the result."""
    if spec.pixel_form:
        form = name_of(pb.PixelForm, spec.pixel_form, "PIXEL_FORM_").lower()
        yield Setting("form of the pixels", form, "request: pixel_form")
    else:
        is_uint8 = any(tensor.name == "pixel_patches" for tensor in header.tensors)
        yield Setting(
            "form of the pixels", "uint8" if is_uint8 else "as the model's own processor makes them", _DEFAULT
        )
    used = {item.key: item for item in header.items}
    for place, medium in enumerate(spec.media):
        if medium.key in used:
            yield from _of_medium(medium, f"request: media[{place}]", used[medium.key], model)
    if spec.chat.template_arguments_json:
        yield Setting("template arguments", spec.chat.template_arguments_json, "request: chat.template_arguments_json")
    if spec.processor_arguments_json:
        yield Setting("processor arguments", spec.processor_arguments_json, "request: processor_arguments_json")
    if model is None:
        return
    if model.HasField("image"):
        pixels = model.image
        yield Setting("patch", f"{pixels.patch_size_px} × {pixels.patch_size_px} px", _MODEL)
        yield Setting("patches of a token", f"{pixels.merge_size} × {pixels.merge_size}", _MODEL)
        yield Setting("frames of a patch", str(pixels.temporal_patch_size), _MODEL)
        yield Setting("mean of R, G, B", ", ".join(f"{one:g}" for one in pixels.mean), _MODEL)
        yield Setting("standard deviation of R, G, B", ", ".join(f"{one:g}" for one in pixels.std), _MODEL)
    if model.video_markers:
        markers = name_of(pb.VideoMarkers, model.video_markers, "VIDEO_MARKERS_").lower()
        source = "--video-markers of the service; else the engine, or transformers here"
        yield Setting("markers around a video", markers, source)
    for modality, token in sorted(model.placeholders.items()):
        yield Setting(f"placeholder of {modality}", token, _MODEL)
    for library, version in sorted(model.versions.items()):
        yield Setting(f"version of {library}", version, "installed")


def _of_medium(medium: pb.Media, path: str, item: pb.Item, model: pb.Model | None) -> Iterator[Setting]:
    key = medium.key
    pixels = None
    if model is not None and model.HasField("image"):
        pixels = model.video if medium.modality == pb.MODALITY_VIDEO else model.image
    if medium.modality == pb.MODALITY_VIDEO:
        yield _sampling(medium, path, pixels)
        if item.basis in _BASES:
            asked = medium.sampling.basis != pb.SAMPLING_BASIS_UNSPECIFIED
            source = f"{path}.sampling.basis" if asked else "the times of the clip's frames"
            yield Setting(f"{key}: sampled over", _BASES[item.basis], source)
        for bound in ("start_seconds", "end_seconds"):
            if medium.sampling.HasField(bound):
                yield Setting(f"{key}: {bound}", f"{getattr(medium.sampling, bound):g} s", f"{path}.sampling.{bound}")
        tolerant = medium.damage_policy == pb.DAMAGE_POLICY_TOLERANT
        source = f"{path}.damage_policy" if medium.damage_policy else _DEFAULT
        yield Setting(f"{key}: a damaged frame", "is replaced" if tolerant else "fails the request", source)
    for name in ("min_pixel_count", "max_pixel_count"):
        if medium.HasField(name):
            yield Setting(f"{key}: {name}", f"{getattr(medium, name):,}", f"{path}.{name}")
        elif pixels is not None:
            yield Setting(f"{key}: {name}", f"{getattr(pixels, name):,}", _MODEL)
    if medium.HasField("cap_pixels_per_frame"):
        value = str(medium.cap_pixels_per_frame).lower()
        yield Setting(f"{key}: cap_pixels_per_frame", value, f"{path}.cap_pixels_per_frame")
    if medium.modality == pb.MODALITY_IMAGE:
        source = f"{path}.background" if medium.background else "--background of the service, else as transformers"
        yield Setting(f"{key}: behind transparent pixels", medium.background or "not stated", source)
    yield Setting(f"{key}: decoder", item.source.decoder or "none", "installed")


def _sampling(medium: pb.Media, path: str, pixels: pb.PixelSettings | None) -> Setting:
    name = f"{medium.key}: frames"
    if medium.HasField("frames"):
        return Setting(name, "all of a list of frames", f"{path}.frames")
    match choice := medium.sampling.WhichOneof("choice"):
        case "fps":
            value = f"{medium.sampling.fps:g} a second"
        case "frame_count":
            value = f"{medium.sampling.frame_count:,} in all"
        case "indices" | "times_seconds":
            values = getattr(medium.sampling, choice).values
            value = f"{len(values):,} by {'number' if choice == 'indices' else 'time'}"
        case "every_frame":
            value = "every frame"
        case _:
            if pixels is None:
                return Setting(name, "by the model's own rule", _MODEL)
            value = f"{pixels.fps:g} a second, {pixels.min_frame_count:,} to {pixels.max_frame_count:,} in all"
            return Setting(name, value, _MODEL)
    return Setting(name, value, f"{path}.sampling.{choice}")


def digests(header: pb.Header) -> Iterator[Pair]:
    yield "model fingerprint", header.model_fingerprint or "not told"
    for item in header.items:
        yield f"{item.key}: item_hash (equal means equal pixels)", item.digest.hex()
        yield f"{item.key}: SHA-256 of the file", item.source.content_sha256.hex()


def facts_of(item: pb.Item, decoded: Sequence[str]) -> Iterator[Pair]:
    """What an item's file and rows are."""
    source = item.source
    match source.WhichOneof("kind"):
        case "video":
            clip = source.video
            turned = f", turned by {clip.rotation_degrees}°" if clip.rotation_degrees else ""
            yield "source", f"{clip.codec} {clip.width_px} × {clip.height_px}{turned}, {size(source.size_bytes)}"
            yield "length", f"{clip.frame_count:,} frames, {clip.duration_seconds:.3f} s, {clip.average_fps:.3f} fps"
            if clip.truncated:
                yield "truncated", f"the file promises {clip.stated_frame_count:,} frames"
            yield "sampled", f"{len(item.frame_indices):,} frames, {item.repeated_frame_count:,} of them repeated"
        case "image":
            picture = source.image
            yield "source", f"{picture.format} {picture.width_px} × {picture.height_px}, {size(source.size_bytes)}"
        case "audio":
            yield "source", f"{source.audio.duration_seconds:.3f} s at {source.audio.sample_rate_hz:,} Hz"
    yield from (("decoded", text) for text in decoded)
    if item.HasField("patches"):
        rows = item.patches
        yield "resized", f"{rows.width_px} × {rows.height_px}"
        count = rows.grid_t * rows.grid_h * rows.grid_w
        yield "grid t, h, w", f"{rows.grid_t}, {rows.grid_h}, {rows.grid_w}: {count:,} patches"
    if item.token_count:
        yield "tokens", f"{item.token_count:,}"


def name_of(enum: Any, number: int, prefix: str) -> str:
    """The name of an enum's value without its prefix; the number where a later release added it."""
    return str(enum.Name(number)).removeprefix(prefix) if number in enum.values() else str(number)


def size(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} bytes"

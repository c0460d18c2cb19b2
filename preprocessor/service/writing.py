"""What the pipeline knows → answer messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine_client import FinishReason
from preprocessor.models.loaded import LoadedModel
from preprocessor.types.plan import ItemPlan, Plan, Substitution
from preprocessor.types.request import Modality, SamplingBasis
from preprocessor.types.source import ClipInfo, ImageInfo, SoundInfo
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.vision.spec import PixelSpec
from preprocessor.wire.tensors import describe_tensor, is_small

_MODALITIES = {
    Modality.IMAGE: pb.MODALITY_IMAGE,
    Modality.VIDEO: pb.MODALITY_VIDEO,
    Modality.AUDIO: pb.MODALITY_AUDIO,
}
_BASES = {SamplingBasis.INDEX: pb.SAMPLING_BASIS_INDEX, SamplingBasis.TIME: pb.SAMPLING_BASIS_TIME}
_FINISH_REASONS = {FinishReason.STOP: pb.FINISH_REASON_STOP, FinishReason.LENGTH: pb.FINISH_REASON_LENGTH}


def write_header(
    model: LoadedModel,
    planned: Plan,
    sizes: Mapping[str, int],
    request_id: str,
    *,
    with_data: bool = True,
) -> pb.Header:
    """Everything known of a plan. Small tensors travel in it whole; large ones, and the pixels, are only described.

    Args:
        sizes: Media key → bytes of its file.
        with_data: False describes every tensor only.
    """
    described = [
        describe_tensor(name, array.dtype, array.shape, array if with_data and is_small(array) else None)
        for name, array in planned.tensors.items()
    ]
    if (pixels := planned.pixels) is not None:
        shape = (pixels.row_count, pixels.feature_count)
        described.append(describe_tensor(pixels.name, PIXEL_DTYPES[pixels.form], shape))
    return pb.Header(
        request_id=request_id,
        model=model.name,
        model_fingerprint=model.fingerprint,
        token_count=planned.token_count,
        items=[write_item(item, sizes[item.key]) for item in planned.items],
        tensors=described,
    )


def write_item(item: ItemPlan, size_bytes: int) -> pb.Item:
    message = pb.Item(
        key=item.key,
        modality=_MODALITIES[item.modality],
        source=_write_source(item, size_bytes),
        digest=item.digest,
        token_count=item.token_count,
        width_px=item.rows.width_px,
        height_px=item.rows.height_px,
        padded_frame_count=item.padded_frame_count,
    )
    if (grid := item.rows.grid) is not None:
        message.grid_t, message.grid_h, message.grid_w = grid.t, grid.h, grid.w
    if item.frames is not None:
        message.frame_indices.extend(item.frames.indices.tolist())
        message.times_seconds.extend(item.frames.times_seconds.tolist())
        message.prompt_times_seconds.extend(item.frames.prompt_times_seconds.tolist())
        message.basis = _BASES[item.frames.basis]
        message.repeated_frame_count = item.frames.repeated_count
    return message


def _write_source(item: ItemPlan, size_bytes: int) -> pb.SourceInfo:
    message = pb.SourceInfo(size_bytes=size_bytes, sha256=item.content_sha256, decoder=item.decoder)
    match item.source:
        case ImageInfo() as image:
            message.codec = image.format
            message.width_px, message.height_px = image.width_px, image.height_px
        case ClipInfo() as clip:
            message.codec = clip.codec
            message.width_px, message.height_px = clip.width_px, clip.height_px
            message.frame_count = clip.frame_count
            message.rate = clip.rate
            message.duration_seconds = clip.duration_seconds
            message.rotation_degrees = clip.rotation_degrees
            message.is_truncated, message.stated_frame_count = clip.is_truncated, clip.stated_frame_count
        case SoundInfo() as sound:
            message.rate = sound.sample_rate_hz
            message.duration_seconds = sound.duration_seconds
    return message


def write_report(
    timings: Timings, received_bytes: int, pixel_bytes: int, substitutions: Sequence[pb.Substitution] = ()
) -> pb.Report:
    return pb.Report(
        stages=[
            pb.StageTime(stage=stage, wall_ms=spent.wall_ms, cpu_ms=spent.cpu_ms)
            for stage, spent in timings.stages.items()
        ],
        received_bytes=received_bytes,
        pixel_bytes=pixel_bytes,
        substitutions=substitutions,
    )


def write_substitutions(planned: Plan, substitutions: Iterable[Substitution]) -> list[pb.Substitution]:
    return [
        pb.Substitution(
            key=planned.items[one.item_index].key,
            item_index=one.item_index,
            frame_index=one.frame_index,
            used_frame_index=one.used_frame_index,
        )
        for one in substitutions
    ]


def write_finish_reason(reason: FinishReason) -> pb.FinishReason.ValueType:
    return _FINISH_REASONS[reason]


def write_model(model: LoadedModel, serves_generate: bool, versions: Mapping[str, str]) -> pb.Model:
    description = model.describe()
    message = pb.Model(
        name=model.name,
        fingerprint=model.fingerprint,
        family=description.family,
        path=description.path.value,
        modalities=[_MODALITIES[modality] for modality in sorted(model.modalities)],
        stop_token_ids=model.stop_token_ids,
        serves_generate=serves_generate,
        versions=dict(versions),
    )
    if description.image is not None:
        message.image.CopyFrom(_write_pixel_settings(description.image))
    if (video := description.video) is not None:
        message.video.CopyFrom(_write_pixel_settings(video.pixels))
        message.video.fps = video.fps
        message.video.min_frame_count = video.min_frames
        message.video.max_frame_count = video.max_frames
    message.placeholders.update({modality.name.lower(): token for modality, token in description.placeholders.items()})
    return message


def _write_pixel_settings(spec: PixelSpec) -> pb.PixelSettings:
    return pb.PixelSettings(
        patch_size_px=spec.patch_size,
        merge_size=spec.merge_size,
        temporal_patch_size=spec.temporal_patch_size,
        min_pixels=spec.min_pixels,
        max_pixels=spec.max_pixels,
        mean=spec.mean,
        std=spec.std,
    )

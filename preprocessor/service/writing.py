"""Results of the pipeline → response messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine_client import FinishReason, TokenLogprob
from preprocessor.models.loaded import LoadedModel, ModelPath
from preprocessor.models.video_markers import VideoMarkers
from preprocessor.types.plan import ItemPlan, Plan, Substitution
from preprocessor.types.request import Modality, SamplingBasis
from preprocessor.types.source import ClipInfo, FrameListInfo, ImageInfo, SoundInfo, VideoInfo
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
    """The header for a plan. Small tensors are sent in it; large ones, and the pixels, are described without their data.

    The pixel tensor comes last.

    Args:
        sizes: Media key → size of its file in bytes.
        with_data: False describes every tensor without its data.
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
    """A planned item as the header lists it. `patches` is set only if its rows are patches.

    Args:
        size_bytes: Size of the medium's file.
    """
    message = pb.Item(
        key=item.key,
        modality=_MODALITIES[item.modality],
        source=_write_source(item, size_bytes),
        digest=item.digest,
        token_count=item.token_count,
    )
    if (grid := item.rows.grid) is not None:
        message.patches.grid_t, message.patches.grid_h, message.patches.grid_w = grid.t, grid.h, grid.w
        message.patches.width_px, message.patches.height_px = item.rows.width_px, item.rows.height_px
        message.patches.padded_frame_count = item.padded_frame_count if item.frames is not None else 0
    if item.frames is not None:
        message.frame_indices.extend(item.frames.indices.tolist())
        message.times_seconds.extend(item.frames.times_seconds.tolist())
        message.prompt_times_seconds.extend(item.frames.prompt_times_seconds.tolist())
        message.basis = _BASES[item.frames.basis]
        message.repeated_frame_count = item.frames.repeated_count
    return message


def _write_source(item: ItemPlan, size_bytes: int) -> pb.SourceInfo:
    message = pb.SourceInfo(size_bytes=size_bytes, content_sha256=item.content_sha256, decoder=item.decoder)
    match item.source:
        case ImageInfo() as image:
            message.image.format = image.format
            message.image.width_px, message.image.height_px = image.width_px, image.height_px
        case ClipInfo() | FrameListInfo() as clip:
            message.video.CopyFrom(_write_video(clip))
        case SoundInfo() as sound:
            message.audio.sample_rate_hz = sound.sample_rate_hz
            message.audio.duration_seconds = sound.duration_seconds
    return message


def _write_video(clip: VideoInfo) -> pb.VideoSource:
    message = pb.VideoSource(
        codec=clip.codec,
        width_px=clip.width_px,
        height_px=clip.height_px,
        frame_count=clip.frame_count,
        average_fps=clip.rate,
        duration_seconds=clip.duration_seconds,
    )
    if isinstance(clip, ClipInfo):
        message.rotation_degrees = clip.rotation_degrees
        message.truncated = clip.is_truncated
        message.stated_frame_count = clip.stated_frame_count
    return message


def write_report(
    timings: Timings,
    received_bytes: int,
    pixel_bytes: int,
    substitutions: Sequence[pb.Substitution] = (),
    cached_item_count: int = 0,
    early_row_count: int = 0,
) -> pb.Report:
    return pb.Report(
        stages=[
            pb.StageTime(stage=stage, wall_ms=spent.wall_ms, cpu_ms=spent.cpu_ms)
            for stage, spent in timings.stages.items()
        ],
        received_bytes=received_bytes,
        pixel_bytes=pixel_bytes,
        substitutions=substitutions,
        cached_item_count=cached_item_count,
        early_row_count=early_row_count,
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


def write_logprob(logprob: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.TokenAlternative(token_id=token_id, logprob=value) for token_id, value in logprob.top]
    return pb.TokenLogprob(logprob=logprob.logprob, top=top)


_PATHS = {ModelPath.FAST: pb.PREPROCESSING_PATH_FAST, ModelPath.GENERIC: pb.PREPROCESSING_PATH_GENERIC}
_VIDEO_MARKERS = {
    None: pb.VIDEO_MARKERS_UNSPECIFIED,
    VideoMarkers.KEEP: pb.VIDEO_MARKERS_KEEP,
    VideoMarkers.REPLACE: pb.VIDEO_MARKERS_REPLACE,
}


def write_model(model: LoadedModel, serves_generate: bool, versions: Mapping[str, str]) -> pb.Model:
    description = model.describe()
    message = pb.Model(
        name=model.name,
        fingerprint=model.fingerprint,
        family=description.family,
        path=_PATHS[description.path],
        modalities=[_MODALITIES[modality] for modality in sorted(model.modalities)],
        stop_token_ids=model.stop_token_ids,
        serves_generate=serves_generate,
        versions=dict(versions),
        video_markers=_VIDEO_MARKERS[description.video_markers],
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
        min_pixel_count=spec.min_pixels,
        max_pixel_count=spec.max_pixels,
        mean=spec.mean,
        std=spec.std,
    )

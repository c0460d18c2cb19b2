"""The data that stages pass to one another.

A `PreparationRequest` becomes a `Plan` (everything known from headers: token ids, grids, positions, sizes), and a plan with
its pixels becomes a `Prepared` prompt. All of it pickles, so that any stage may run in another process.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.timing import Timings


class Modality(enum.IntEnum):
    """The numbers are those of the engine contract's `item_modality`."""

    IMAGE = 1
    VIDEO = 2
    AUDIO = 3


class PixelForm(enum.Enum):
    """How pixels leave: uint8 patches (normalized by the engine), floats already normalized, or none at all."""

    UINT8 = "uint8"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    NONE = "none"


# -- what the caller asks for ------------------------------------------------------------------------------------------


class SamplingBasis(enum.Enum):
    """What evenly spread frames are spread over."""

    AUTO = "auto"  # TIME where the frame rate varies, else INDEX: the two agree on a constant rate
    INDEX = "index"  # frame numbers at the average rate, as transformers does
    TIME = "time"  # presentation times: the frame on screen at each moment


class OnDamage(enum.Enum):
    """What to do about a chosen frame that cannot be decoded."""

    FAIL = "fail"  # end with an error that names the first bad time
    REPEAT = "repeat"  # use the last good frame in its place, and report it


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video to use.

    Attributes:
        fps, frame_count, indices, times_seconds, every_frame: At most one; none means the model's own rule. `frame_count`
            is a cap. Indices count frames in presentation order from 0; at a time, the frame on screen is taken.
        start_seconds, end_seconds: Frames shown from start (included) to end (excluded), counted from the first frame; not
            with explicit indices or times.
        basis: What fps and frame_count spread frames over.
    """

    fps: float | None = None
    frame_count: int | None = None
    indices: tuple[int, ...] | None = None
    times_seconds: tuple[float, ...] | None = None
    every_frame: bool = False
    start_seconds: float | None = None
    end_seconds: float | None = None
    basis: SamplingBasis = SamplingBasis.AUTO


@dataclass(frozen=True, slots=True)
class Media:
    """One image, video or sound as its encoded file.

    Attributes:
        key: The caller's name for it, unique in the request; parts of a chat refer to it.
        data: The whole file. In the service a view of shared memory stands for it, which workers make bytes of.
        min_pixels, max_pixels: Override the model's pixel budget; None keeps it. Whether a video's budget counts one frame
            or all is the model family's rule.
        cap_pixels_per_frame: Override the model's setting of that name; None keeps it.
    """

    key: str
    modality: Modality
    data: bytes = field(repr=False)
    sampling: Sampling = Sampling()
    min_pixels: int | None = None
    max_pixels: int | None = None
    cap_pixels_per_frame: bool | None = None
    on_damage: OnDamage = OnDamage.FAIL


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MediaPart:
    key: str


@dataclass(frozen=True, slots=True)
class Message:
    """`extra` holds further fields that the model's template knows, such as `tool_calls` or `tool_call_id`."""

    role: str
    parts: tuple[TextPart | MediaPart, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's chat template; `template_arguments` reach the template by name."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A rendered prompt with one placeholder token (such as `<|image_pad|>`) for each medium, in media order."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids with one placeholder id for each medium, in media order.

    Equal to the ids of the same prompt as text wherever the placeholder follows a special token, as templates write it: what
    a family puts before its frames (a timestamp, say) is tokenized on its own here.
    """

    token_ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PreparationRequest:
    """A prompt, its media, and the form its pixels should take.

    Attributes:
        pixel_form: None leaves it to the model's path: UINT8 on the fast one, the processor's own on the generic one.
        with_token_types: Whether to add `mm_token_type_ids`.
        cache_salt: Mixed into every item's digest.
        video_decoder: A name in `media.video.DECODERS`; the deployment's choice, not the caller's.
    """

    prompt: ChatPrompt | TextPrompt | TokenPrompt
    media: tuple[Media, ...] = ()
    pixel_form: PixelForm | None = None
    with_token_types: bool = False
    cache_salt: str = ""
    video_decoder: str = "pyav"


# -- what headers tell -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Header facts of an image, upright.

    Attributes:
        format: Such as "JPEG".
        decoder: The libraries that decode it, with versions.
    """

    format: str
    width_px: int
    height_px: int
    decoder: str


@dataclass(frozen=True, slots=True)
class SoundInfo:
    """A sound as extracted: mono, at the rate that the model wants, not the file's."""

    sample_rate_hz: int
    duration_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class ClipInfo:
    """What a walk over a video's packets tells, without decoding one.

    Attributes:
        codec: FFmpeg's decoder name, such as "h264".
        rate: Average frames a second as the container states it.
        pts: Presentation timestamps int64 [frame_count], ascending, in units of `time_base_seconds`.
        rotation_degrees: How far the stored picture was turned clockwise to stand upright: 0, 90, 180 or 270.
        is_truncated: The file ends before it says; the frames are those that it still holds whole.
        stated_frame_count: Frames that the file's index promises; 0 where it does not say.
    """

    codec: str
    width_px: int
    height_px: int
    rate: float
    duration_seconds: float
    time_base_seconds: float
    pts: npt.NDArray[np.int64] = field(repr=False)
    rotation_degrees: int = 0
    is_truncated: bool = False
    stated_frame_count: int = 0

    @property
    def frame_count(self) -> int:
        return len(self.pts)

    @property
    def times_seconds(self) -> npt.NDArray[np.float64]:
        """Presentation time of every frame, float64 [frame_count], the first frame's own time included."""
        return self.pts.astype(np.float64) * self.time_base_seconds


@dataclass(frozen=True, slots=True, eq=False)
class FrameChoice:
    """The frames to decode.

    Attributes:
        indices: int64 [n], ascending, in presentation order; a frame that is on screen at several moments may repeat.
        times_seconds: Their presentation times, float64 [n], as the file states them.
        prompt_times_seconds: The times a prompt should state, float64 [n], counted from the clip's first frame: index /
            average rate on basis INDEX (as transformers does), on TIME the moments at which the frames are on screen.
        sampled_fps: Frames chosen a second of the clip, or of the part between start and end.
        basis: INDEX or TIME, as used.
    """

    indices: npt.NDArray[np.int64]
    times_seconds: npt.NDArray[np.float64]
    prompt_times_seconds: npt.NDArray[np.float64]
    sampled_fps: float
    basis: SamplingBasis

    @property
    def repeated_count(self) -> int:
        """Places that a frame takes beyond its first."""
        return len(self.indices) - len(np.unique(self.indices))


# -- the plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """Patches along time, height and width."""

    t: int
    h: int
    w: int

    @property
    def patch_count(self) -> int:
        return self.t * self.h * self.w


@dataclass(frozen=True, slots=True, eq=False)
class ItemPlan:
    """One medium of a request, planned.

    Attributes:
        source: Header facts; a `ClipInfo` for a video.
        frames: The frames chosen of a video; None for an image.
        padded_frame_count: Frames appended by repeating the last, to fill the last temporal patch.
        row_start: First row of this item in `pixel_patches`.
        content_sha256: Digest of the file.
        digest: SHA-256 of content, processing settings and the caller's salt, for caches.
    """

    key: str
    modality: Modality
    source: ImageInfo | ClipInfo
    frames: FrameChoice | None
    padded_frame_count: int
    grid: Grid
    width_px: int
    height_px: int
    row_start: int
    token_count: int
    content_sha256: bytes
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class ExpandedPrompt:
    """Token ids int32 [L] with placeholders expanded, and `spans` int32 [S, 3]: item index, offset, length."""

    token_ids: npt.NDArray[np.int32]
    spans: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class PixelPlan:
    """The pixel tensor to be made: all that decoding needs beside the files.

    Attributes:
        items: In prompt order.
        row_count, feature_count: Shape of the tensor.
        size_bytes: Its size in the asked form; 0 where none is to be made.
        video_decoder: A name in `media.video.DECODERS`.
    """

    items: tuple[ItemPlan, ...]
    row_count: int
    feature_count: int
    form: PixelForm
    size_bytes: int
    video_decoder: str

    @property
    def name(self) -> str:
        """What the engine contract calls the tensor."""
        return "pixel_patches" if self.form is PixelForm.UINT8 else "pixel_values"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All of a prepared prompt but its pixels, known before a frame is decoded.

    Attributes:
        mrope_position_ids: int32 [3, L], time, height and width positions.
        mrope_position_delta: Next text position minus L.
        tensors: Every tensor of the result but the pixels, by the engine contract's names.
    """

    pixels: PixelPlan
    prompt: ExpandedPrompt
    mrope_position_ids: npt.NDArray[np.int32]
    mrope_position_delta: int
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    timings: Timings

    @property
    def items(self) -> tuple[ItemPlan, ...]:
        """In prompt order."""
        return self.pixels.items

    @property
    def pixel_bytes(self) -> int:
        return self.pixels.size_bytes

    @property
    def token_count(self) -> int:
        return len(self.prompt.token_ids)


@dataclass(frozen=True, slots=True)
class Substitution:
    """A chosen frame that could not be decoded, and the frame used in its place (`OnDamage.REPEAT`)."""

    item_index: int
    frame_index: int
    used_frame_index: int


@dataclass(frozen=True, slots=True)
class PixelReport:
    """What happened while pixels were made."""

    timings: Timings
    substitutions: tuple[Substitution, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A prompt ready for an engine: `tensors` by the engine contract's names, and how they came to be.

    Attributes:
        plan: What was planned; for a generic model what its processor made.
    """

    plan: Any
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    timings: Timings
    substitutions: tuple[Substitution, ...] = ()

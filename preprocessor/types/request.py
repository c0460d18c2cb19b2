"""What a caller requests: a prompt, its files, and the form of its pixels."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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


class FrameEncoding(enum.Enum):
    """How the frames of a `FrameList` are encoded."""

    IMAGE_FILE = "image file"  # JPEG, PNG or WebP
    RGB24 = "rgb24"  # height x width x 3 bytes, without a header


@dataclass(frozen=True, slots=True)
class FrameList:
    """The frames of a video that the caller has chosen. The medium's file holds their pictures one after another.

    Attributes:
        sizes_bytes: Of each picture, in order.
        fps, times_seconds: Exactly one. Frames a second, the first frame at 0 s; or when each frame is shown, ascending.
        width_px, height_px: Of every RGB24 frame; 0 for image files, whose headers tell.
        duration_seconds: Length of the video that frames with times are from; None where it is not known.
    """

    sizes_bytes: tuple[int, ...] = field(repr=False)
    fps: float | None = None
    times_seconds: tuple[float, ...] | None = field(default=None, repr=False)
    encoding: FrameEncoding = FrameEncoding.IMAGE_FILE
    width_px: int = 0
    height_px: int = 0
    duration_seconds: float | None = None


FileData = bytes | memoryview
"""A whole file: bytes, or a view of shared memory."""


@dataclass(frozen=True, slots=True)
class Media:
    """One image, video or sound as its encoded file.

    Attributes:
        key: The caller's name for it, unique in the request; parts of a chat refer to it.
        data: The whole file. In the service's own process it is a view of shared memory; a worker copies it into bytes.
        min_pixels, max_pixels: Override the model's pixel budget; None keeps it. Whether a video's budget counts one frame
            or all is the model family's rule.
        cap_pixels_per_frame: Override the model's setting of that name; None keeps it.
        background: "#rrggbb" behind the transparent parts of an image; None does as transformers does.
        content_sha256: What the caller says that the file's SHA-256 is, 32 bytes; None where it does not say.
        frames: Where the file is not a video but frames of one; `sampling` is then empty.
        file_sha256: What it is, where the service has computed it; None where it is still to be computed.
        uuid: The caller's own name for the file; None where there is none.
    """

    key: str
    modality: Modality
    data: FileData = field(repr=False)
    sampling: Sampling = Sampling()
    min_pixels: int | None = None
    max_pixels: int | None = None
    cap_pixels_per_frame: bool | None = None
    on_damage: OnDamage = OnDamage.FAIL
    background: str | None = None
    content_sha256: bytes | None = None
    frames: FrameList | None = None
    file_sha256: bytes | None = None
    uuid: str | None = None

    @property
    def content(self) -> bytes:
        """`data` where it is bytes, as decoders take it: everywhere but in the service's own process."""
        assert isinstance(self.data, bytes)
        return self.data

    def pixel_budget(self, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """The model's budget with the caller's bounds in their place.

        A single bound is not held against the model's other one, of which the caller need not know: as in transformers.
        """
        least = min_pixels if self.min_pixels is None else self.min_pixels
        most = max_pixels if self.max_pixels is None else self.max_pixels
        return least, most


@dataclass(frozen=True, slots=True)
class TextPart:
    """`is_literal`: encoded as written, whatever it holds; no piece of it becomes a special or other added token."""

    text: str = field(repr=False)
    is_literal: bool = False


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

    Equal to the ids of the same prompt as text wherever the placeholder follows a special token, as templates write it: the
    text that a family puts before its frames (a timestamp, say) is tokenized separately here.
    """

    token_ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PreparationRequest:
    """A prompt, its media, and the form its pixels should take.

    Attributes:
        pixel_form: None: UINT8 on the fast path, the processor's own on the generic path.
        with_token_types: Whether to add `mm_token_type_ids`.
        cache_salt: Mixed into every item's digest.
        video_decoder: A name in `media.video.VIDEO_BACKENDS`; the deployment's choice, not the caller's.
        processor_arguments: Arguments of the model's own processor by name, on the generic path alone.
    """

    prompt: ChatPrompt | TextPrompt | TokenPrompt
    media: tuple[Media, ...] = ()
    pixel_form: PixelForm | None = None
    with_token_types: bool = False
    cache_salt: str = ""
    video_decoder: str = "pyav"
    processor_arguments: Mapping[str, Any] = field(default_factory=dict)

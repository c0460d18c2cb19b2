"""What a caller asks for: a prompt, its files, and the form that its pixels should take."""

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


@dataclass(frozen=True, slots=True)
class Media:
    """One image, video or sound as its encoded file.

    Attributes:
        key: The caller's name for it, unique in the request; parts of a chat refer to it.
        data: The whole file. In the service a view of shared memory stands for it, which workers make bytes of.
        min_pixels, max_pixels: Override the model's pixel budget; None keeps it. Whether a video's budget counts one frame
            or all is the model family's rule.
        cap_pixels_per_frame: Override the model's setting of that name; None keeps it.
        background: "#rrggbb" that all that is transparent in an image is laid on; None does as transformers does.
        content_sha256: What the caller says that the file's SHA-256 is, 32 bytes; None where he does not say.
    """

    key: str
    modality: Modality
    data: bytes = field(repr=False)
    sampling: Sampling = Sampling()
    min_pixels: int | None = None
    max_pixels: int | None = None
    cap_pixels_per_frame: bool | None = None
    on_damage: OnDamage = OnDamage.FAIL
    background: str | None = None
    content_sha256: bytes | None = None


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

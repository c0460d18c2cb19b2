"""Whether a file ends before its own structure says that it does.

An upload that was cut must fail with one reason, wherever it was cut: inside the index, inside a frame, or between two. FFmpeg
reads what is there and often says nothing. So the outermost structure of each container is walked here: boxes, chunks,
elements, pages or packets with a length in front, a few bytes read of each.

Only what must be there counts. A total that writers get wrong (the size of a RIFF, of a Matroska segment) does not make a file
short if what writers put last (an index) is there whole. Streams without any length, such as raw H.264, cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from preprocessor.media.truncation.chunks import (
    aiff_is_cut,
    asf_is_cut,
    au_is_cut,
    avi_is_cut,
    gif_is_cut,
    is_aiff,
    is_asf,
    is_au,
    is_avi,
    is_gif,
    is_ivf,
    is_mxf,
    is_png,
    ivf_is_cut,
    mxf_is_cut,
    png_is_cut,
)
from preprocessor.media.truncation.matroska import is_matroska, matroska_is_cut
from preprocessor.media.truncation.mp4 import is_mp4, mp4_is_cut
from preprocessor.media.truncation.pages import (
    flv_is_cut,
    is_flv,
    is_ogg,
    is_program_stream,
    is_transport_stream,
    ogg_is_cut,
    program_stream_is_cut,
    transport_stream_is_cut,
)
from preprocessor.media.truncation.sound import is_sound_in_frames, sound_in_frames_is_cut

_KINDS: Mapping[Callable[[bytes], bool], Callable[[bytes], bool]] = {
    is_mp4: mp4_is_cut,
    is_matroska: matroska_is_cut,
    is_avi: avi_is_cut,
    is_asf: asf_is_cut,
    is_png: png_is_cut,
    is_mxf: mxf_is_cut,
    is_gif: gif_is_cut,
    is_ivf: ivf_is_cut,
    is_aiff: aiff_is_cut,
    is_au: au_is_cut,
    is_flv: flv_is_cut,
    is_ogg: ogg_is_cut,
    is_program_stream: program_stream_is_cut,
    is_transport_stream: transport_stream_is_cut,
    is_sound_in_frames: sound_in_frames_is_cut,
}


def ends_early(data: bytes) -> bool:
    """Whether the file's structure shows that its end is missing; False where it does not tell."""
    return any(is_kind(data) and is_cut(data) for is_kind, is_cut in _KINDS.items())

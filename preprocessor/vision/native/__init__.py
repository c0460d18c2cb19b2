"""The resize of RGB frames and the cutting into patch rows in one call of C, equal to torch's result in every byte.

The library is optional: it is built where a C compiler is (`make setup`, the image, wheels), and `VARIANTS` is empty where there
is none. It is loaded when this module is imported, before workers are forked; later it needs nothing of the system but memory.
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessor.vision.weights import AxisWeights


class _Axis(ctypes.Structure):
    _fields_ = (
        ("source", ctypes.c_int32),
        ("target", ctypes.c_int32),
        ("tap_count", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("starts", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    )


class _Cut(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("canvas_height", "canvas_width", "patch", "merge", "frames"))


VARIANTS: tuple[str, ...] = ()
"""Instruction sets that the library has code for and this CPU has, the fastest first. Empty without the library."""

_library: ctypes.CDLL | None = None


def use(path: Path) -> None:
    """Load the library from this file, in place of the one loaded before; without one where it cannot be loaded."""
    global VARIANTS, _library
    VARIANTS, _library = (), None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # absent, or of another platform
        return
    library.resizer_variant.restype = ctypes.c_char_p
    library.resizer_new.restype = ctypes.c_void_p
    library.resizer_free.argtypes = (ctypes.c_void_p,)
    library.resizer_write.restype = None
    library.resizer_write.argtypes = (
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32,
    )  # fmt: skip
    names: list[str] = []
    while (name := library.resizer_variant(len(names))) is not None:
        names.append(name.decode())
    VARIANTS, _library = tuple(names), library


use(Path(__file__).with_name("_resize.abi3.so"))


class RowResizer:
    """Writes frames of one size into the rows of patches, for one thread; its buffers are reused from frame to frame."""

    def __init__(
        self,
        horizontal: AxisWeights,
        vertical: AxisWeights,
        canvas: tuple[int, int],
        *,
        patch: int,
        merge: int,
        frames: int,
        variant: int = 0,
    ) -> None:
        """
        Args:
            canvas: Height and width in px, to which black is added below and to the right; multiples of patch * merge.
            patch, merge, frames: See `PixelSpec`.
            variant: Index in `VARIANTS`.
        """
        assert _library is not None, "VARIANTS is empty"
        self._frames = frames
        self._size = (vertical.source, horizontal.source, 3)
        self._shape = (canvas[0] * canvas[1] // patch**2, 3 * frames * patch**2)
        self._write = _library.resizer_write
        axes = [
            _Axis(
                axis.source,
                axis.target,
                axis.weights.shape[1],
                axis.precision,
                axis.starts.ctypes.data,
                axis.weights.ctypes.data,
            )
            for axis in (horizontal, vertical)
        ]
        self._handle = _library.resizer_new(*map(ctypes.byref, (*axes, _Cut(*canvas, patch, merge, frames))), variant)
        if not self._handle:
            raise MemoryError("no memory for a frame's buffers")
        weakref.finalize(self, _library.resizer_free, self._handle)

    def write(self, frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice) -> None:
        """Resize a frame and cut it into its part of the rows of a temporal patch; the interpreter lock is released.

        Args:
            frame: RGB uint8 [height, width, 3].
            rows: uint8 [patches, 3 * frames * patch * patch], C-contiguous.
            places: The frame's places among the frames of a patch.
        Raises:
            ValueError: One of the arrays is another than that: C does not see how large they are.
        """
        if frame.shape != self._size or frame.dtype != np.uint8:
            raise ValueError(f"a frame of {frame.dtype} {frame.shape}; {self._size} is needed")
        if (
            rows.shape != self._shape
            or rows.dtype != np.uint8
            or not (rows.flags.c_contiguous and rows.flags.writeable)
        ):
            raise ValueError(f"rows of {rows.dtype} {rows.shape}; {self._shape} is needed, contiguous and writable")
        first, stop, _ = places.indices(self._frames)
        if frame.strides[1:] != (3, 1):
            frame = np.ascontiguousarray(frame)
        self._write(self._handle, frame.ctypes.data, frame.strides[0], rows.ctypes.data, first, stop)

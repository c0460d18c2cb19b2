"""What a processor returns → numpy tensors under the processor's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from preprocessor.errors import UnsupportedMedia
from preprocessor.types.request import PixelForm

# One row a prompt: [1, L]. By name, since a spectrogram or a stack of tiles may happen to have that shape.
TEXT_TENSORS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})

# What `DataType` of the API can say; `wire.tensors.DTYPES` has the same.
CARRIED_DTYPES = frozenset({torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float16, torch.float32})

_FLOAT_FORMS = {PixelForm.BF16: torch.bfloat16, PixelForm.FP16: torch.float16, PixelForm.FP32: torch.float32}


def to_tensors(output: Mapping[str, Any], form: PixelForm | None) -> dict[str, npt.NDArray[Any]]:
    """Every value of a processor's output as an array of its own dtype, except:

    * the text's tensors lose their batch axis, and `input_ids` become int32 [L];
    * floats are rounded to `form`, to nearest even as torch rounds; None leaves them as they are, but for float64, which is
      rounded to float32; NONE leaves out all but the text's tensors;
    * booleans become uint8 0 and 1.

    A list of tensors of one shape is stacked.

    Raises:
        UnsupportedMedia: `RAGGED_TENSORS` where a value is a list of different shapes; `UNKNOWN_TENSOR` for anything else
            that is not numbers, or numbers of a type that the API has not.
    """
    tensors = {}
    for name, value in output.items():
        if name not in TEXT_TENSORS and form is PixelForm.NONE:
            continue
        tensor = _tensor(name, value)
        if name in TEXT_TENSORS:
            tensor = tensor.squeeze(0)
        elif tensor.is_floating_point():
            tensor = tensor if form is None else tensor.to(_FLOAT_FORMS[form])
        tensors[name] = _array(_carried(name, tensor))
    if "input_ids" in tensors:
        tensors["input_ids"] = tensors["input_ids"].astype(np.int32)
    return tensors


def _tensor(name: str, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        if isinstance(value, (list, tuple)) and value and all(isinstance(part, torch.Tensor) for part in value):
            return torch.stack(list(value))
        return torch.as_tensor(np.asarray(value))
    except (RuntimeError, ValueError) as error:  # shapes that differ
        raise ragged(name) from error
    except TypeError as error:
        raise UnsupportedMedia(
            f"the model's processor returns {name} as {type(value).__name__}, which is no tensor",
            reason="UNKNOWN_TENSOR",
        ) from error


def _carried(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in a type that the API has."""
    if tensor.dtype is torch.bool:
        return tensor.view(torch.uint8)
    if tensor.dtype is torch.float64:
        return tensor.to(torch.float32)
    if tensor.dtype not in CARRIED_DTYPES:
        raise UnsupportedMedia(
            f"the model's processor returns {name} as {tensor.dtype}, which the API does not carry",
            reason="UNKNOWN_TENSOR",
        )
    return tensor


def ragged(name: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        f"the model's processor makes {name} of different shapes for these media, which is no one tensor; send media of "
        "equal size, or each in a request of its own",
        reason="RAGGED_TENSORS",
    )


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's memory as a C-contiguous array; numpy learns bfloat16 from ml_dtypes."""
    tensor = tensor.detach().contiguous()
    is_bfloat16 = tensor.dtype is torch.bfloat16
    array: npt.NDArray[Any] = tensor.view(torch.int16).numpy() if is_bfloat16 else tensor.numpy()
    return array.view(ml_dtypes.bfloat16) if is_bfloat16 else array

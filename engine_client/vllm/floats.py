"""Pixels as normalized floats, for a server that does not take uint8."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from engine_client.contract.tensors import CHANNEL_COUNT, Array
from engine_client.vllm.server import VllmServer


def normalize(pixels: Array, tensors: Mapping[str, Array], server: VllmServer) -> Array:
    """uint8 rows as the encoder's floats, by a table: exact, as each of 256 values is worked out once per channel.

    Source: transformers 5.23, image_processing_backends, rescale_and_normalize: (value - mean) / std in float32, both
    scaled to 0 … 255 before.
    """
    if server.rescales_alone:
        # transformers 5.23, rescale, which differs in the last bit from normalizing by 0 and 1.
        table = np.arange(256, dtype=np.float32)[None, :] * np.float32(1 / 255)
    else:
        mean = tensors["pixel_mean"].astype(np.float32) * np.float32(255)
        std = tensors["pixel_std"].astype(np.float32) * np.float32(255)
        table = (np.arange(256, dtype=np.float32)[None, :] - mean[:, None]) / std[:, None]
    if server.float_type == "bfloat16":
        table = table.astype(ml_dtypes.bfloat16)
    elif server.float_type == "float16":
        table = table.astype(np.float16)
    if (table == table[0]).all():
        return table[0][pixels]  # type: ignore[no-any-return]
    by_channel = pixels.reshape(len(pixels), CHANNEL_COUNT, -1)
    out = np.empty(by_channel.shape, table.dtype)
    for channel in range(CHANNEL_COUNT):
        out[:, channel] = table[channel][by_channel[:, channel]]
    return out.reshape(pixels.shape)

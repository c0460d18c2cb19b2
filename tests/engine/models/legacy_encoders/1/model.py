"""Answers with what it was given, as token ids: shapes, grid, sums, a CRC-32; so that a test sees what arrived."""

import zlib
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            given = {
                name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("pixel_values", "image_grid_thw", "attention_mask", "vision_input_id", "max_tokens")
            }
            pixels, mask = given["pixel_values"], given["attention_mask"]
            facts = [
                *pixels.shape,
                int(pixels.astype(np.float64).sum()),
                *given["image_grid_thw"].reshape(-1),
                *mask.shape,
                mask.sum(),
                given["vision_input_id"].sum(),
                given["max_tokens"][0, 0],
                zlib.crc32(pixels) & 0x7FFFFFFF,
            ]
            sender = request.get_response_sender()
            output = pb_utils.Tensor("output_ids", np.array(facts, np.int32)[None, None])
            sender.send(pb_utils.InferenceResponse(output_tensors=[output]))
            sender.send(flags=FINAL)

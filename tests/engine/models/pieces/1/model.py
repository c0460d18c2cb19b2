"""Answers with [messages, rows, CRC-32 of the rows in order], once the last message of the prompt is there.

The CRC is left out, as 0, where `input_ids` is [0]: a benchmark wants to know when the rows are there, and no more.
"""

import json
import zlib
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._open: dict[int, dict[str, Any]] = {}

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            key, flags, sender = request.correlation_id(), request.flags(), request.get_response_sender()
            if flags & START or not key:
                wants_crc = _tensor(request, "input_ids").tolist() != [0]
                self._open[key] = {"sender": sender, "messages": 0, "rows": 0, "crc": 0, "wants_crc": wants_crc}
            prompt = self._open.get(key)
            if prompt is not None and not json.loads(request.parameters() or "{}").get("stop"):
                self._add(prompt, request)
            if not flags & START and key:
                sender.send(flags=FINAL)
            if prompt is not None and (flags & END or not key):
                self._answer(self._open.pop(key))

    def _add(self, prompt: dict[str, Any], request: Any) -> None:
        prompt["messages"] += 1
        rows, first_row = _tensor(request, "pixel_patches"), _tensor(request, "first_row")
        if rows is not None:
            assert first_row is None or first_row[0] == prompt["rows"], (first_row, prompt["rows"])
            prompt["rows"] += len(rows)
            if prompt["wants_crc"]:
                prompt["crc"] = zlib.crc32(rows, prompt["crc"])

    def _answer(self, prompt: dict[str, Any]) -> None:
        got = np.array([prompt["messages"], prompt["rows"], prompt["crc"] & 0x7FFFFFFF], np.int32)
        reason = np.array([b"stop"], np.object_)
        tensors = [pb_utils.Tensor("token_ids", got), pb_utils.Tensor("finish_reason", reason)]
        prompt["sender"].send(pb_utils.InferenceResponse(output_tensors=tensors))
        prompt["sender"].send(flags=FINAL)


def _tensor(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()

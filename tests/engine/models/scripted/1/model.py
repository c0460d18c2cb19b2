"""Sends `max_tokens` tokens 0, 1, 2, …, and then ends in the way that `input_ids` names.

HELD stops before token number `top_k` as long as there is a file of its `seed`'s: see `tests.engine.servers.Gate`.
"""

import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINISH, NO_REASON, UNKNOWN_REASON, FAIL, CHECKSUM, HELD = range(6)
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PACE_SECONDS = 0.001  # an answer of many tokens should last, and not keep a core busy


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            threading.Thread(target=self._answer, args=(request, request.get_response_sender())).start()

    def _answer(self, request: Any, sender: Any) -> None:
        ending = _number(request, "input_ids")
        gate = Path(f"/dev/shm/scripted-{_number(request, 'seed')}")
        stop_before = _number(request, "top_k") if ending == HELD else -1
        for index in range(_number(request, "max_tokens")):
            while index == stop_before and gate.exists() and not sender.is_cancelled():
                time.sleep(PACE_SECONDS)
            if sender.is_cancelled():
                sender.send(flags=FINAL)
                return
            sender.send(_step(index))
            time.sleep(PACE_SECONDS)
        if ending == FAIL:
            error = pb_utils.TritonError("the script says so", pb_utils.TritonError.INTERNAL)
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            return
        if ending == CHECKSUM:
            patches = pb_utils.get_input_tensor_by_name(request, "pixel_patches").as_numpy()
            sender.send(_step(zlib.crc32(patches) & 0x7FFFFFFF))
        if ending != NO_REASON:
            sender.send(_step(reason=b"bored" if ending == UNKNOWN_REASON else b"length"))
        sender.send(flags=FINAL)


def _number(request: Any, name: str) -> int:
    return int(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0])


def _step(*token_ids: int, reason: bytes | None = None) -> Any:
    outputs = [pb_utils.Tensor("token_ids", np.array(token_ids, np.int32))]
    if reason:
        outputs.append(pb_utils.Tensor("finish_reason", np.array([reason], np.object_)))
    return pb_utils.InferenceResponse(output_tensors=outputs)

"""Sends `max_tokens` tokens 0, 1, 2, …, and then ends in the way that `input_ids` names."""

import threading
import time
import zlib

import numpy as np
import triton_python_backend_utils as pb_utils

FINISH, NO_REASON, UNKNOWN_REASON, FAIL, CHECKSUM, SLOW, SILENT = range(7)
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PREFILL_SECONDS = 0.5  # of SLOW: from the request to its first token
PACE_SECONDS = 0.001  # an answer of many tokens should last, and not keep a core busy


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self._answer, args=(request, request.get_response_sender())).start()

    def _answer(self, request, sender):
        ending = int(pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy()[0])
        if ending == SLOW:
            time.sleep(PREFILL_SECONDS)
        while ending == SILENT and not sender.is_cancelled():
            time.sleep(PACE_SECONDS)
        for index in range(int(pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy()[0])):
            if sender.is_cancelled():
                return sender.send(flags=FINAL)
            sender.send(_step(index))
            time.sleep(PACE_SECONDS)
        if ending == FAIL:
            error = pb_utils.TritonError("the script says so", pb_utils.TritonError.INTERNAL)
            return sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
        if ending == CHECKSUM:
            patches = pb_utils.get_input_tensor_by_name(request, "pixel_patches").as_numpy()
            sender.send(_step(zlib.crc32(patches) & 0x7FFFFFFF))
        if ending != NO_REASON:
            sender.send(_step(reason=b"bored" if ending == UNKNOWN_REASON else b"length"))
        return sender.send(flags=FINAL)


def _step(*token_ids, reason=None):
    outputs = [pb_utils.Tensor("token_ids", np.array(token_ids, np.int32))]
    if reason:
        outputs.append(pb_utils.Tensor("finish_reason", np.array([reason], np.object_)))
    return pb_utils.InferenceResponse(output_tensors=outputs)

"""Every answer is the characters of the constraint, as token ids; answer i has i of them more in front, all of them 0.

The answers alternate, two tokens a response; the log probability of a token is minus the token, and of its alternatives
minus theirs, which are the tokens after it. An `input_ids` of [0] leaves out the end of the last answer.
"""

from typing import Any

import triton_python_backend_utils as pb_utils

from engine_client.contract.sampling import CONSTRAINTS, SamplingParameters, TokenLogprob
from engine_client.contract.tensors import FEATURE_TENSORS, SAMPLING_TENSORS
from engine_client.triton.backend.answers import Answer, Outcomes


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._outcomes = Outcomes("several_answers")

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            answer = Answer("several_answers", request, self._outcomes, lambda: None)
            try:
                self._answer(answer, request)
            except Exception as failure:
                answer.fail(failure)
            else:
                answer.end("stop")

    def finalize(self) -> None:
        self._outcomes.close()

    def _answer(self, answer: Answer, request: Any) -> None:
        tensors = {}
        for name in (*SAMPLING_TENSORS, *FEATURE_TENSORS):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = tensor.as_numpy()
        sampling = SamplingParameters.from_tensors(tensors)
        text = "".join(getattr(sampling, name) for name in CONSTRAINTS)
        answers = [[0] * index + [ord(letter) for letter in text] for index in range(sampling.answer_count)]
        is_cut_off = pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy().tolist() == [0]
        for start in range(0, max(map(len, answers)), 2):
            for index, token_ids in enumerate(answers):
                new_ids = token_ids[start : start + 2]
                is_last = new_ids and start + 2 >= len(token_ids)
                reason = "stop" if is_last and not (is_cut_off and index == len(answers) - 1) else None
                if new_ids:
                    answer.send(new_ids, reason, _logprobs(new_ids, sampling.logprobs), index)


def _logprobs(token_ids: list[int], count: int | None) -> list[TokenLogprob]:
    if count is None:
        return []
    return [TokenLogprob(-float(one), tuple((one + i, -float(one + i)) for i in range(count))) for one in token_ids]

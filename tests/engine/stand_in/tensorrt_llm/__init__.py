"""What the tests of `vlm_tensorrt_llm` put in TensorRT-LLM's place, which cannot be installed without a GPU.

It has the names that the model uses, with the arguments and fields that the real ones have, and refuses what those
refuse; it keeps what it is given, and answers as the first token id of the prompt says (`script.py`). It proves that the
model drives this interface, not that TensorRT-LLM works as this does. Where each was read, in NVIDIA/TensorRT-LLM:

    LLM.__init__, generate_async      tests/unittest/api_stability/references_committed/llm.yaml at 029c15cb
    PreprocessedInputs                tensorrt_llm/llmapi/llm.py; `query_token_ids` came and went, so it is not here
    SamplingParams                    …/references_committed/sampling_params.yaml at 020a7393; penalties, logprobs and
                                      GuidedDecodingParams in tensorrt_llm/sampling_params.py at 000a01de
    CompletionOutput, RequestOutput   …/references_committed/completion_output.yaml at 0c6a62a1, request_output.yaml
    MultimodalInput, MultimodalParams tensorrt_llm/inputs/multimodal.py at 32779536 and, with runs, 01138754
    maybe_compute_mm_embed_cumsum     tensorrt_llm/inputs/registry.py at 002f3cc3
    get_mm_encoder_item_metadata      tensorrt_llm/_torch/models/modeling_qwen2vl.py, by its unit tests
"""

import os

from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
__version__ = os.environ.get("STAND_IN_VERSION", "1.4.0rc1")

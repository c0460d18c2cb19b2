"""What the tests of `vlm_tensorrt_llm` put in TensorRT-LLM's place, which cannot be installed without a GPU.

It has the names that the model uses and no others, keeps what it is given, and answers as the first token id of the
prompt says (`script.py`). It proves that the model drives this interface, not that TensorRT-LLM has this interface:
that was read in its source, and the model's README says where.
"""

import os

from tensorrt_llm.llmapi.llm import LLM
from tensorrt_llm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]
__version__ = os.environ.get("STAND_IN_VERSION", "1.4.0rc1")

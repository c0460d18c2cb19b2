"""vLLM by its own gRPC service (`vllm serve MODEL --grpc`), whose messages are those of the package `smg-grpc-proto`.

server         what the server says of itself and of its model
served_model   asking it that, and whether it is ready
prompt         a request as one message
vision_prompt  its images and videos, checked for all that would end the engine's core
floats         pixels as normalized floats
own_tensors    the same for tensors of a model's own processor
sampling       how tokens are chosen, and the log probabilities of an answer
links          pixels that it reads in shared memory
status         its errors as this package's
engine         one request from its message to its last token
"""

from engine_client.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]

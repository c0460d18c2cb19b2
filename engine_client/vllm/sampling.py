"""Sampling parameters as vLLM's message, and the log probabilities of its answers.

Source: smg-grpc-servicer 0.14.1, vllm/servicer.py, `_sampling_params_from_proto`, `_build_output_logprobs`; vllm 0.32,
sampling_params.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.contract.sampling import MAX_LOGPROBS, SamplingParameters, TokenLogprob
from engine_client.contract.tensors import FEATURE_TENSORS
from engine_client.errors import EngineFailed

FEATURES = frozenset(FEATURE_TENSORS)
"""vLLM has all of them."""
_MAX_SEED = (1 << 31) - 1


def encode_sampling(sampling: SamplingParameters) -> pb.SamplingParams:
    """The message of vLLM's service.

    The seed is an int32 there: seeds are folded into its range, and equal ones stay equal. Given stop tokens replace the
    checkpoint's own, as the contract says; a constrained answer ends by the latter too.
    """
    message = pb.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed % (_MAX_SEED + 1),
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=bool(sampling.stop_token_ids) and sampling.constraint is None,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        n=sampling.answer_count,
    )
    if sampling.logprobs is not None:
        # The servicer counts the sampled token among as many as were asked for, and cuts: one more keeps the last of them.
        # vLLM's own limit is MAX_LOGPROBS unless it was started with another --max-logprobs.
        message.logprobs = min(sampling.logprobs + 1, MAX_LOGPROBS) if sampling.logprobs else 0
    if (name := sampling.constraint) is not None:
        setattr(message, name, getattr(sampling, name))  # the same names there
    return message


def read_logprobs(
    who: str, token_ids: Sequence[int], found: pb.OutputLogProbs, top_count: int | None
) -> tuple[TokenLogprob, ...]:
    """The log probabilities of new tokens.

    Args:
        who: Starts the message of the error; names the engine.
        token_ids: The new tokens.
        top_count: `SamplingParameters.logprobs`; None reads nothing.
    Raises:
        EngineFailed: they are not those of these tokens.
    """
    if top_count is None:
        return ()
    tops = found.top_logprobs if top_count else [pb.TopLogProbs()] * len(token_ids)
    if list(found.token_ids) != list(token_ids) or len(tops) != len(token_ids):
        raise EngineFailed(f"{who} told log probabilities of {len(found.token_ids)} tokens, and sent {len(token_ids)}")
    return tuple(
        TokenLogprob(logprob, _likeliest(top, top_count))
        for logprob, top in zip(found.token_logprobs, tops, strict=True)
    )


def _likeliest(top: pb.TopLogProbs, count: int) -> tuple[tuple[int, float], ...]:
    """The first is the sampled token, however likely it is; the others follow, likeliest first."""
    pairs = sorted(zip(top.token_ids, top.values, strict=True), key=lambda pair: -pair[1])
    return tuple(pairs[:count])

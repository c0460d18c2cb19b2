"""Sampling parameters as vLLM's message, and log probabilities from its answers, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client import FEATURE_TENSORS, EngineFailed, SamplingParameters, TokenLogprob
from engine_client.vllm import VllmEngine
from engine_client.vllm.sampling import encode_sampling, read_logprobs


def test_defaults_are_vllm_s_neutral_values() -> None:
    assert encode_sampling(SamplingParameters()) == pb.SamplingParams(
        temperature=0, top_p=1, max_tokens=16, seed=0, repetition_penalty=1, n=1
    )


def test_every_feature_has_its_field() -> None:
    features: dict[str, Any] = {
        "min_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 2.0,
    }
    message = encode_sampling(SamplingParameters(temperature=0.5, answer_count=3, regex="a+", **features))
    assert {name: getattr(message, name) for name in features} == features
    assert (message.n, message.WhichOneof("constraint"), message.regex) == (3, "regex", "a+")
    assert not message.HasField("logprobs")


@pytest.mark.parametrize("name", ["json_schema", "regex", "grammar"])
def test_a_constraint_is_vllm_s_of_the_same_name(name: str) -> None:
    constraint: dict[str, Any] = {name: "{}"}
    message = encode_sampling(SamplingParameters(**constraint))
    assert (message.WhichOneof("constraint"), getattr(message, name)) == (name, "{}")


@pytest.mark.parametrize(("asked", "sent"), [(0, 0), (1, 2), (19, 20), (20, 20)])
def test_one_alternative_more_is_asked_for_within_vllm_s_limit(asked: int, sent: int) -> None:
    message = encode_sampling(SamplingParameters(logprobs=asked))
    assert message.HasField("logprobs")
    assert message.logprobs == sent


def found(*tokens: tuple[int, float, dict[int, float]]) -> pb.OutputLogProbs:
    return pb.OutputLogProbs(
        token_ids=[token_id for token_id, _, _ in tokens],
        token_logprobs=[logprob for _, logprob, _ in tokens],
        top_logprobs=[pb.TopLogProbs(token_ids=list(top), values=top.values()) for _, _, top in tokens if top],
    )


def test_alternatives_are_the_likeliest_without_the_sampled_token_where_it_is_none_of_them() -> None:
    unlikely = (9, -8.0, {9: -8.0, 1: -0.5, 2: -1.0})
    likely = (2, -1.0, {2: -1.0, 1: -0.5, 3: -2.0})
    assert read_logprobs("e", [9, 2], found(unlikely, likely), 2) == (
        TokenLogprob(-8.0, ((1, -0.5), (2, -1.0))),
        TokenLogprob(-1.0, ((1, -0.5), (2, -1.0))),
    )


def test_without_alternatives_and_without_log_probabilities_less_is_read() -> None:
    assert read_logprobs("e", [9], found((9, -8.0, {})), 0) == (TokenLogprob(-8.0),)
    assert read_logprobs("e", [9], pb.OutputLogProbs(), None) == ()


@pytest.mark.parametrize(
    "told", [pb.OutputLogProbs(), found((8, -1.0, {8: -1.0})), found((9, -1.0, {})), found(*[(9, -1.0, {9: -1.0})] * 2)]
)
def test_log_probabilities_of_other_tokens_are_an_error(told: pb.OutputLogProbs) -> None:
    with pytest.raises(EngineFailed, match="e told log probabilities of"):
        read_logprobs("e", [9], told, 1)


async def test_what_vllm_has_is_known_without_asking_it() -> None:
    async with VllmEngine("127.0.0.1:1") as engine:
        assert await engine.sampling_features() == FEATURE_TENSORS.keys()

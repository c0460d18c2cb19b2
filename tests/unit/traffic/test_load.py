"""A load divided over processes is the same load."""

from __future__ import annotations

import math

import pytest

from preprocessor.client import Parameters, chat, image
from preprocessor.client.routing import MEDIA_DIGEST, routing_metadata
from preprocessor.models.family import Model
from preprocessor.text.tokenizer import encode
from preprocessor.traffic.load import Ask, Load, ask_count_tokens, ask_generate, ask_prepare, shares, with_salt
from preprocessor.traffic.seed import SECONDS, TEXT, seed_clip
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo

ASKS = tuple(Ask(name, ()) for name in "abc")


@pytest.mark.parametrize(("concurrency", "count", "of"), [(10, 25, 4), (3, 7, 2), (1, 5, 8), (8, math.inf, 3)])
def test_callers_and_requests_add_up(concurrency: int, count: float, of: int) -> None:
    parts = shares(Load(ASKS, concurrency, count=count, beside=ASKS), of)
    assert len(parts) == min(of, concurrency)
    assert sum(part.concurrency for part in parts) == concurrency
    assert all(part.concurrency for part in parts)
    if count != math.inf:
        assert sum(part.count for part in parts) == count
    assert sorted(ask.name for part in parts for ask in part.beside) == ["a", "b", "c"]
    assert [(part.share, part.of) for part in parts] == [(i, len(parts)) for i in range(len(parts))]


def test_each_process_begins_with_another_request() -> None:
    assert [part.asks[0].name for part in shares(Load(ASKS, 6), 3)] == ["a", "b", "c"]


def test_a_salted_request_is_the_same_in_all_else() -> None:
    prompt = chat([{"role": "user", "content": ["hello"]}])
    spec = pb.PrepareSpec()
    spec.CopyFrom(prompt.spec)
    spec.cache_salt = "mine"
    first = with_salt(ask_prepare("", prompt), "mine").messages[0]
    assert pb.PrepareRequest.FromString(first) == pb.PrepareRequest(spec=spec)
    first = with_salt(ask_count_tokens("", prompt), "mine").messages[0]
    assert pb.CountTokensRequest.FromString(first) == pb.CountTokensRequest(spec=spec)
    first = with_salt(ask_generate("", prompt, Parameters(max_tokens=4)), "mine").messages[0]
    parameters = pb.GenerationParameters(max_tokens=4)
    assert pb.GenerateRequest.FromString(first) == pb.GenerateRequest(
        spec=pb.GenerateSpec(prompt=spec, parameters=parameters)
    )


def test_a_request_names_its_first_medium_as_the_client_does_and_a_salted_one_another() -> None:
    prompt = chat([{"role": "user", "content": [image(photo(16, 16)), "What is it?"]}])
    for ask in (ask_prepare("", prompt), ask_count_tokens("", prompt), ask_generate("", prompt, Parameters())):
        assert ask.metadata == routing_metadata(prompt, {})
        named = {ask.metadata, with_salt(ask, "mine").metadata, with_salt(ask, "yours").metadata}
        assert len(named) == 3
        assert {(key, len(value)) for ((key, value),) in named} == {(MEDIA_DIGEST, 32)}
    assert with_salt(ask_prepare("", chat("Hi")), "mine").metadata == ()


def test_the_seed_clip_is_the_clip_that_the_benchmarks_measure() -> None:
    assert seed_clip(1) == moving_shapes_clip(1)
    assert SECONDS == 30


def test_the_seed_text_is_fifty_tokens(model: Model) -> None:
    assert len(encode(model.tokenizer, TEXT)) == 50

"""`vlm_vllm` holds items: their pixels are sent once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import SamplingParameters, TritonEngine
from engine_client.types import FinishReason
from preprocessor.models.family import Model
from tests.engine import servers
from tests.engine.held import OnDemand, written_bytes
from tests.engine.servers import outcome_count
from tests.engine.vllm_prompts import KINDS, TOKEN_COUNT, answer, tensors_of
from tests.engine.vllm_triton.test_answers import takes_none
from tests.engine.vllm_triton_server import MARKS

pytestmark = MARKS


@pytest.mark.parametrize("way", ["pieces", "whole"])
async def test_the_next_prompt_about_the_same_items_sends_no_pixels_and_gets_the_same_tokens(
    way: str,
    engine: TritonEngine,
    server: TritonServer,
    tiny: Model,
    expected: Mapping[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "whole":
        monkeypatch.setattr(engine._model, "takes_pieces", takes_none)
    for number, (kind, media) in enumerate(KINDS.items()):
        if not media:
            continue
        tensors = tensors_of(tiny, media)
        tensors["item_hash"] = tensors["item_hash"] ^ np.uint8(64 + 2 * number + (way == "whole"))
        assert not engine.holds(tensors["item_hash"])
        assert await answer(engine, tensors) == (expected[kind], FinishReason.LENGTH), kind
        assert engine.holds(tensors["item_hash"])
        sizes, again = written_bytes(monkeypatch), OnDemand(tensors)
        greedy = dataclasses.replace(again.request, sampling=SamplingParameters(TOKEN_COUNT))
        assert await servers.answer(engine, greedy) == expected[kind]
        assert again.count == 0
        assert sum(sizes) < 8192 + tensors["input_ids"].nbytes + tensors["mrope_position_ids"].nbytes
        # A wrong guess: of an item that was never there.
        tensors["item_hash"] = tensors["item_hash"] ^ np.uint8(128)
        engine._held.learn([row.tobytes() for row in tensors["item_hash"]], [True] * len(tensors["item_hash"]))
        wrong, refused = OnDemand(tensors), outcome_count(server, "not_held")
        greedy = dataclasses.replace(wrong.request, sampling=SamplingParameters(TOKEN_COUNT))
        assert await servers.answer(engine, greedy) == expected[kind]
        assert (wrong.count, outcome_count(server, "not_held")) == (1, refused + 1)

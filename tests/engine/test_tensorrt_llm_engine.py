"""How `vlm_tensorrt_llm` drives TensorRT-LLM, with `stand_in/` in its place: it cannot be installed without a GPU.

This is the one engine that tests meet as a stand-in. What is proven is what the model asks for and what it makes of the
answers; that TensorRT-LLM has this interface was read in its source (the model's README).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from tests.engine.tensorrt_llm_model import Tensors, image_tensors, mixed_tensors, prepare, text_tensors
from tests.waiting import PATIENCE_SECONDS

# -- prompts -----------------------------------------------------------------------------------------------------------

COUNT_UP, END_ID, STOP_WORD, FAIL, TIME_OUT, SILENT, REFUSED, LEAVING = range(1, 9)  # stand_in/tensorrt_llm/script.py
OWN_END_ID = 99


def sampled(**values: Any) -> Any:
    return SamplingParameters(**({"max_tokens": 5} | values))


def test_a_mixed_prompt_arrives_whole(load_tensorrt_llm: Callable[..., Any]) -> None:
    inputs = prepare(load_tensorrt_llm(), mixed_tensors(), sampled()).inputs
    assert inputs.prompt_token_ids == [1, 97, 97, 2, 98, 3, 98, 4, 97, 5]
    given = inputs.multimodal_params
    assert asdict(given.multimodal_input) | {"multimodal_hashes": None} == {
        "multimodal_hashes": None,
        "multimodal_positions": [1, 4, 8],
        "multimodal_lengths": [2, 2, 1],
        "multimodal_uuids": None,
        "multimodal_item_run_cu_offsets": [0, 1, 3, 4],
        "multimodal_run_positions": [1, 4, 6, 8],
        "multimodal_run_lengths": [2, 1, 1, 1],
    }
    assert [len(item) for item in given.multimodal_input.multimodal_hashes] == [8, 8, 8]
    assert [entry["modality"] for entry in given.mm_item_order] == ["image", "video", "image"]


def test_every_tensor_is_shared_and_the_sums_are_tensorrt_llms_own(load_tensorrt_llm: Callable[..., Any]) -> None:
    prompt = prepare(load_tensorrt_llm(), mixed_tensors(), sampled())
    data = prompt.inputs.multimodal_params.multimodal_data
    own = prompt.data
    assert data["image"]["pixel_values"].tensor is own["image"]["pixel_values"]
    assert data["video"]["video_grid_thw"].tensor is own["video"]["video_grid_thw"]
    assert data["mrope_config"]["mrope_position_ids"].tensor is own["mrope_config"]["mrope_position_ids"]
    assert data["multimodal_embed_mask_cumsum"].tensor.tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert data["multimodal_embedding_lengths"] == [2, 2, 1]


def test_items_are_described_for_the_scheduler_where_there_is_one(
    stand_in: Any, load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def data() -> Any:
        return prepare(load_tensorrt_llm(), image_tensors(), sampled()).inputs.multimodal_params.multimodal_data

    _, length, seen = data()["items for the scheduler"]
    assert length == 4
    assert {"image", "multimodal_embed_mask_cumsum", "multimodal_embedding_lengths"} <= set(seen)
    monkeypatch.delattr(stand_in.InputProcessor, "get_mm_encoder_item_metadata")
    assert "items for the scheduler" not in data()


def test_text_alone_has_positions_and_no_keys(load_tensorrt_llm: Callable[..., Any]) -> None:
    given = prepare(load_tensorrt_llm(), text_tensors(1, 2), sampled()).inputs.multimodal_params
    assert set(given.multimodal_data) == {"mrope_config"}
    assert given.multimodal_input is None


def test_block_reuse_asks_for_hashes(load_tensorrt_llm: Callable[..., Any]) -> None:
    tensors = image_tensors()
    del tensors["item_hash"]
    assert (
        prepare(load_tensorrt_llm(kv_cache_reuse="false"), tensors, sampled()).inputs.multimodal_params.multimodal_input
        is None
    )
    with pytest.raises(InvalidPrompt, match="item_hash is missing"):
        prepare(load_tensorrt_llm(), tensors, sampled())


@pytest.mark.parametrize(
    ("arguments", "max_tokens", "complaint"),
    [
        ("{}", 62, "make 66 positions; the model has 64"),
        ('{"max_seq_len": 16}', 13, "make 17 positions; the model has 16"),
        ('{"max_num_tokens": 3}', 1, "input_ids has 4 tokens; max_num_tokens of this engine is 3"),
    ],
)
def test_a_prompt_too_long_is_refused_before_anything_is_shared(
    load_tensorrt_llm: Callable[..., Any], arguments: str, max_tokens: int, complaint: str
) -> None:
    loaded = load_tensorrt_llm(llm_arguments=arguments)
    with pytest.raises(InvalidPrompt, match=complaint):
        prepare(loaded, image_tensors(), sampled(max_tokens=max_tokens))


def test_chunked_prefill_takes_longer_prompts(load_tensorrt_llm: Callable[..., Any]) -> None:
    loaded = load_tensorrt_llm(llm_arguments='{"max_num_tokens": 3, "enable_chunked_prefill": true}')
    assert prepare(loaded, image_tensors(), sampled()).inputs


# -- answers -----------------------------------------------------------------------------------------------------------


async def ask(
    loaded: Any, tensors: Tensors, sampling: Any, is_cancelled: Callable[[], bool] = lambda: False
) -> tuple[str, list[tuple[list[int], str | None]]]:
    steps: list[tuple[list[int], str | None]] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        outcome = await loaded.generate(
            prepare(loaded, tensors, sampling),
            sampling,
            emit=lambda token_ids, reason, logprobs: steps.append((token_ids, reason)),
            is_cancelled=is_cancelled,
        )
    return outcome, steps


async def test_tokens_come_as_they_are_made_and_the_last_has_the_reason(load_tensorrt_llm: Callable[..., Any]) -> None:
    outcome, steps = await ask(load_tensorrt_llm(), image_tensors(COUNT_UP), sampled(max_tokens=3))
    assert outcome == "length"
    assert steps == [([0], None), ([1], None), ([2], "length")]


async def test_answers_made_at_once_do_not_mix(load_tensorrt_llm: Callable[..., Any]) -> None:
    loaded = load_tensorrt_llm()
    answers = await asyncio.gather(*(ask(loaded, text_tensors(COUNT_UP), sampled(max_tokens=n)) for n in (2, 5, 9)))
    assert [[ids[0] for ids, _ in steps] for _, steps in answers] == [list(range(n)) for n in (2, 5, 9)]


async def test_the_checkpoints_own_end_is_the_last_token(load_tensorrt_llm: Callable[..., Any]) -> None:
    outcome, steps = await ask(load_tensorrt_llm(), text_tensors(END_ID), sampled())
    assert outcome == "stop"
    assert steps[-1] == ([OWN_END_ID], "stop")


async def test_a_stop_token_of_the_request_is_the_last_token_once(load_tensorrt_llm: Callable[..., Any]) -> None:
    for course, stops in ((END_ID, (41,)), (STOP_WORD, (40, 41))):
        outcome, steps = await ask(load_tensorrt_llm(), text_tensors(course), sampled(stop_token_ids=stops))
        assert outcome == "stop"
        assert [token_id for ids, _ in steps for token_id in ids] == [0, 1, 41]


async def test_the_sampling_reaches_the_engine(stand_in: Any, load_tensorrt_llm: Callable[..., Any]) -> None:
    await ask(load_tensorrt_llm(), text_tensors(COUNT_UP), sampled(temperature=0.5, top_p=0.9, top_k=4, seed=2**64 - 1))
    given = stand_in.LLM.made[-1].outputs[0].sampling
    assert (given.temperature, given.top_p, given.top_k, given.seed) == (0.5, 0.9, 4, 2**64 - 1)


async def test_features_reach_the_engine(stand_in: Any, load_tensorrt_llm: Callable[..., Any]) -> None:
    tensors = text_tensors(COUNT_UP)
    features = {"min_p": 0.25, "presence_penalty": -1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.5}
    await ask(load_tensorrt_llm(), tensors, sampled(**features, regex="a+"))
    given = stand_in.LLM.made[-1].outputs[0].sampling
    assert {name: getattr(given, name) for name in features} == features
    assert given.prompt_ignore_length == len(tensors["input_ids"])
    assert (given.guided_decoding.regex, given.guided_decoding.json, given.logprobs) == ("a+", None, None)


async def test_log_probabilities_are_those_of_the_new_tokens(load_tensorrt_llm: Callable[..., Any]) -> None:
    loaded, sampling = load_tensorrt_llm(), sampled(max_tokens=2, logprobs=1)
    told: list[Any] = []
    await loaded.generate(
        prepare(loaded, text_tensors(COUNT_UP), sampling),
        sampling,
        emit=lambda token_ids, reason, logprobs: told.extend(logprobs),
        is_cancelled=lambda: False,
    )
    assert told == [TokenLogprob(0.0, ((0, 0.0),)), TokenLogprob(-0.5, ((1, -0.5),))]


async def test_cancelling_aborts_a_request_that_has_no_token_yet(
    stand_in: Any, load_tensorrt_llm: Callable[..., Any]
) -> None:
    asked = iter([False, False])
    outcome, steps = await ask(load_tensorrt_llm(), text_tensors(SILENT), sampled(), lambda: next(asked, True))
    assert (outcome, steps) == ("cancelled", [])
    assert stand_in.LLM.made[-1].outputs[0].is_aborted
    assert stand_in.LLM.made[-1].outputs[0].finished  # waited for, so that the prompt's tensors may go


async def test_cancelling_ends_an_answer_under_way(stand_in: Any, load_tensorrt_llm: Callable[..., Any]) -> None:
    steps: list[list[int]] = []
    loaded, sampling = load_tensorrt_llm(), sampled(max_tokens=50)
    outcome = await loaded.generate(
        prepare(loaded, text_tensors(COUNT_UP), sampling),
        sampling,
        emit=lambda token_ids, reason, logprobs: steps.append(token_ids),
        is_cancelled=lambda: len(steps) == 2,
    )
    assert (outcome, steps) == ("cancelled", [[0], [1]])
    assert stand_in.LLM.made[-1].outputs[0].is_aborted


async def test_an_answer_that_nobody_can_be_sent_is_aborted(
    stand_in: Any, load_tensorrt_llm: Callable[..., Any]
) -> None:
    def emit(token_ids: list[int], reason: str | None, logprobs: object) -> None:
        raise BrokenPipeError("the server is gone")

    loaded = load_tensorrt_llm()
    prompt = prepare(loaded, text_tensors(COUNT_UP), sampled())
    with pytest.raises(BrokenPipeError):
        await loaded.generate(prompt, sampled(), emit=emit, is_cancelled=lambda: False)
    assert stand_in.LLM.made[-1].outputs[0].finished


@pytest.mark.parametrize(
    ("course", "error", "complaint"),
    [
        (REFUSED, "InvalidPrompt", "the script refuses"),
        (LEAVING, "EngineGone", "LLM is shutting down"),
        (FAIL, "RequestError", "the script fails"),
        (TIME_OUT, "RuntimeError", "ended the answer with 'timeout'"),
    ],
)
async def test_an_error_says_whose_it_is(
    load_tensorrt_llm: Callable[..., Any], course: int, error: str, complaint: str
) -> None:
    with pytest.raises(Exception, match=complaint) as raised:
        await ask(load_tensorrt_llm(), text_tensors(course), sampled())
    assert type(raised.value).__name__ == error


def test_shutting_down_reaches_the_engine(stand_in: Any, load_tensorrt_llm: Callable[..., Any]) -> None:
    load_tensorrt_llm().shutdown()
    assert stand_in.LLM.made[-1].is_shut_down

"""What vLLM needs of a prompt: shared by its own door and by `vlm_vllm`, whose files without vLLM are tested here too."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deploy.triton.local_server import REPOSITORY
from engine_client.contract.errors import InvalidPrompt, Refused
from engine_client.contract.layout import ModelLayout
from engine_client.contract.prompt import check_prompt
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import IMAGE, VIDEO, Array
from engine_client.contract.vllm_families import FAMILIES
from engine_client.contract.vllm_rules import (
    VisionMarkers,
    check_item_counts,
    check_item_size,
    check_seconds,
    item_range,
)
from engine_client.triton.backend.parameters import InvalidSettings
from tests.engine.model_files import model_file

module = partial(model_file, "vlm_vllm")
engine, facts, items, settings = (module(name) for name in ("engine", "facts", "items", "settings"))

START, END, PAD, PICTURE = 50, 51, 98, 97
MARKERS = VisionMarkers(START, END)
IDS = np.array([1, 2, START, PAD, PAD, END, 3, START, PAD, PAD, END, 4], np.int32)
SPANS = [(3, 2), (8, 2)]


def test_a_range_begins_at_the_marker_before_the_first_frame() -> None:
    assert item_range(IDS, SPANS, MARKERS, 0) == (2, 10)
    assert item_range(IDS, SPANS, VisionMarkers(None, None), 0) == (2, 10)
    assert item_range(IDS, SPANS, None, 0) == (3, 10)


@pytest.mark.parametrize(
    ("place", "token_id", "complaint"),
    [
        pytest.param(2, 7, "before a frame of item 5", id="no first start"),
        pytest.param(7, 7, "before a frame of item 5", id="no later start"),
        pytest.param(5, 7, "after a frame of item 5", id="no end"),
        pytest.param(10, 7, "after a frame of item 5", id="no last end"),
        pytest.param(6, START, "3 tokens 50 among its frames; it must have 2", id="a start too many"),
        pytest.param(6, END, "2 tokens 51 among its frames; it must have 1", id="an end too many"),
    ],
)
def test_a_frame_without_its_markers_is_no_prompt(place: int, token_id: int, complaint: str) -> None:
    ids = IDS.copy()
    ids[place] = token_id
    with pytest.raises(InvalidPrompt, match=complaint):
        item_range(ids, SPANS, MARKERS, 5)


@pytest.mark.parametrize("ids", [IDS[3:], IDS[:10]])
def test_a_marker_beyond_the_prompt_is_missing(ids: Array) -> None:
    spans = SPANS if len(ids) == 10 else [(0, 2), (5, 2)]
    with pytest.raises(InvalidPrompt, match="no vision marker"):
        item_range(ids, spans, MARKERS, 0)


@pytest.mark.parametrize(
    ("check", "complaint"),
    [
        (lambda: check_item_counts([IMAGE, IMAGE], {IMAGE: 1}), "the prompt has 2 images; the engine takes 1"),
        (lambda: check_item_counts([VIDEO], {VIDEO: 0}), "the prompt has 1 videos; the engine takes 0"),
        (lambda: check_item_size(3, 9, 8), "item 3 takes 9 tokens; the engine's encoder takes 8"),
        (lambda: check_seconds(np.ones(1, np.float32), [VIDEO, IMAGE]), r"must be float32 \[2\]"),
        (lambda: check_seconds(np.ones(1, np.float64), [VIDEO]), r"must be float32 \[1\]"),
        (lambda: check_seconds(np.zeros(1, np.float32), [VIDEO]), "must be above 0"),
        (lambda: check_seconds(np.array([np.nan], np.float32), [VIDEO]), "must be above 0"),
    ],
)
def test_what_the_engine_does_not_take_is_refused(check: Callable[[], None], complaint: str) -> None:
    with pytest.raises(InvalidPrompt, match=complaint):
        check()


def test_what_it_takes_passes() -> None:
    check_item_counts([IMAGE, IMAGE], {VIDEO: 0})
    check_item_size(0, 9, 0)
    check_item_size(0, 9, 9)
    check_seconds(np.array([0, 0.5], np.float32), [IMAGE, VIDEO])


# -- vlm_vllm ----------------------------------------------------------------------------------------------------------

LAYOUT = ModelLayout(
    patch_size=1,
    temporal_patch_size=1,
    merge_size=1,
    image_token_id=PICTURE,
    video_token_id=PAD,
    vocabulary_size=100,
    max_positions=64,
)
FACTS = facts.EngineFacts(
    family=FAMILIES["qwen3_vl"],
    model_type="qwen3_vl",
    layout=LAYOUT,
    dtype=torch.bfloat16,
    normalizes=True,
    mean=np.full(3, 0.5, np.float32),
    std=np.full(3, 0.25, np.float32),
    max_items={IMAGE: 2, VIDEO: 1},
    max_item_tokens=0,
    markers=MARKERS,
)


def prompt(**changed: Any) -> dict[str, Array]:
    """A picture of three patches, then `IDS`: a video of two frames of two patches each."""
    tensors: dict[str, Any] = {
        "input_ids": np.concatenate([[9, PICTURE, PICTURE, PICTURE], IDS]).astype(np.int32),
        "pixel_patches": np.zeros((7, 3), np.uint8),
        "pixel_mean": np.full(3, 0.5, np.float32),
        "pixel_std": np.full(3, 0.25, np.float32),
        "grid_thw": np.array([[1, 1, 3], [2, 1, 2]], np.int64),
        "item_modality": np.array([IMAGE, VIDEO], np.int32),
        "item_spans": np.array([[0, 1, 3], [1, 7, 2], [1, 12, 2]], np.int32),
        "item_hash": np.arange(64, dtype=np.uint8).reshape(2, 32),
    }
    return {name: array for name, array in (tensors | changed).items() if array is not None}


def read(tensors: dict[str, Array], known: Any = FACTS) -> Any:
    return items.read_items(tensors, check_prompt(tensors, known.layout), known)


def test_items_are_laid_out_as_vllm_wants_them() -> None:
    picture, video = read(prompt())
    assert (picture.modality, picture.first_row, picture.row_count) == (IMAGE, 0, 3)
    assert (picture.first_token, picture.token_count, picture.placeholders) == (1, 3, None)
    assert picture.hash == bytes(range(32)).hex()
    assert (video.modality, video.first_row, video.row_count) == (VIDEO, 3, 4)
    assert (video.first_token, video.token_count) == (6, 8)
    assert video.placeholders.tolist() == [False, True, True, False, False, False, True, True]
    assert video.grid.tolist() == [2, 1, 2]
    assert read({"input_ids": IDS[:3]}) == ()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"item_hash": None}, "item_hash is missing"),
        ({"item_hash": np.zeros((1, 32), np.uint8)}, r"must be uint8 \[2, 32\]"),
        ({"item_hash": np.zeros((2, 32), np.int32)}, r"must be uint8 \[2, 32\]"),
        ({"pixel_mean": np.zeros(3, np.float32)}, "pixel_mean is .*; this engine normalizes by its checkpoint's"),
        ({"pixel_std": np.ones(3, np.float32)}, "pixel_std is .*; this engine normalizes by its checkpoint's"),
    ],
)
def test_what_vllm_would_misread_is_refused(changed: dict[str, Array | None], complaint: str) -> None:
    with pytest.raises(InvalidPrompt, match=complaint):
        read(prompt(**changed))


def test_a_vllm_that_takes_floats_normalizes_by_nothing_of_its_own() -> None:
    assert len(read(prompt(pixel_mean=np.zeros(3, np.float32)), dataclasses.replace(FACTS, normalizes=False))) == 2


def test_seconds_are_asked_for_where_positions_are_of_seconds() -> None:
    layout = dataclasses.replace(LAYOUT, one_span_a_video=True)
    known = dataclasses.replace(FACTS, family=FAMILIES["qwen2_5_vl"], layout=layout, markers=None)
    changed = {
        "grid_thw": np.array([[1, 1, 3], [1, 1, 2]], np.int64),
        "item_modality": np.array([IMAGE, VIDEO], np.int32),
    }
    tensors = prompt(**changed, item_spans=np.array([[0, 1, 3], [1, 7, 2]], np.int32), pixel_patches=None)
    tensors["input_ids"] = tensors["input_ids"][:9]
    with pytest.raises(InvalidPrompt, match="second_per_grid_ts is missing"):
        read(tensors, known)
    picture, video = read(tensors | {"second_per_grid_ts": np.array([0, 0.5], np.float32)}, known)
    assert (picture.seconds_per_step, video.seconds_per_step) == (None, 0.5)


def test_stop_tokens_replace_the_checkpoints_but_not_under_a_constraint() -> None:
    arguments = items.sampling_arguments(SamplingParameters(seed=2**40 + 5, stop_token_ids=(7,)))
    assert (arguments["stop_token_ids"], arguments["ignore_eos"], arguments["seed"]) == ([7], True, 5)
    assert not items.sampling_arguments(SamplingParameters())["ignore_eos"]
    constrained = items.sampling_arguments(SamplingParameters(stop_token_ids=(7,), json_schema="{}"))
    assert (constrained["structured_outputs"], constrained["ignore_eos"]) == ({"json": "{}"}, False)


def test_log_probabilities_have_the_likeliest_first() -> None:
    likely = [{5: SimpleNamespace(logprob=-3.0), 7: SimpleNamespace(logprob=-1.0), 8: SimpleNamespace(logprob=-0.5)}]
    assert items.token_logprobs([5], likely, 2) == (TokenLogprob(-3.0, ((8, -0.5), (7, -1.0))),)
    assert items.token_logprobs([5], likely, 0) == (TokenLogprob(-3.0),)
    assert items.token_logprobs([5], None, None) == ()


def config(model_type: str = "qwen3_vl", **multimodal: Any) -> Any:
    ids = {"image_token_id": PICTURE, "video_token_id": PAD}
    markers = {"vision_start_token_id": START, "vision_end_token_id": END}
    sizes = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}
    own = SimpleNamespace(
        model_type=model_type,
        to_dict=lambda: {"vision_config": sizes, **ids, **markers},
        get_text_config=lambda: SimpleNamespace(vocab_size=100),
        **markers,
    )
    limits = SimpleNamespace(get_limit_per_prompt={"image": 3, "video": 2}.__getitem__, **multimodal)
    model = SimpleNamespace(hf_config=own, multimodal_config=limits, max_model_len=2048, dtype=torch.bfloat16)
    return SimpleNamespace(model_config=model)


def test_the_engine_says_what_it_takes() -> None:
    processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    found = facts.read_facts(config(mm_device_do_normalize=True), 77, processor)
    assert (found.layout.max_positions, found.layout.one_span_a_video, found.normalizes) == (2048, False, True)
    assert (found.max_items, found.max_item_tokens, found.markers) == ({IMAGE: 3, VIDEO: 2}, 77, MARKERS)
    assert found.mean.tolist() == [0.5] * 3
    older = facts.read_facts(config("qwen2_5_vl"), 0, None)
    assert (older.layout.one_span_a_video, older.normalizes, older.markers, older.mean) == (True, False, None, None)
    with pytest.raises(facts.UnsupportedEngine, match="of family llama; served are qwen2_vl, "):
        facts.read_facts(config("llama"), 0, None)


class VLLMClientError(Exception):
    """By its name one of vLLM's."""


class GracefulHTTPError(Exception):
    """By its name one of vLLM's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "becomes", "text"),
    [
        (VLLMClientError("too long"), InvalidPrompt, "vLLM refused the prompt: too long"),
        (ValueError("no token"), InvalidPrompt, "vLLM refused the prompt: no token"),
        (caused(RuntimeError(), ValueError("no token")), InvalidPrompt, "vLLM refused the prompt: no token"),
        (GracefulHTTPError(), Refused, "too many prompts are queued in vLLM"),
        (RuntimeError("broken"), RuntimeError, "broken"),
    ],
)
def test_an_error_of_vllm_is_the_callers_or_the_engines(error: Exception, becomes: type[Exception], text: str) -> None:
    told = engine.translated(error)
    assert type(told) is becomes
    assert text in str(told)


def parameters() -> dict[str, str]:
    """As `config.pbtxt` has them."""
    text = (REPOSITORY / "vlm_vllm/config.pbtxt").read_text()
    written = (line.split('key: "')[1].split('"', 1) for line in text.splitlines() if 'key: "' in line)
    return {name: rest.split('string_value: "')[1].rpartition('"')[0] for name, rest in written}


def test_the_configuration_has_every_parameter_that_is_read() -> None:
    own = {name for name in parameters() if not name.startswith("fingerprint.")}
    assert own == {field.name for field in dataclasses.fields(settings.ModelParameters)}
    found = settings.ModelParameters.from_parameters(parameters(), {"VLM_CHECKPOINT": "there"})
    assert (found.checkpoint, found.when_engine_dies, found.engine_arguments) == ("there", "stop_server", {})


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"when_engine_dies": "sleep"}, "must be one of stop_server, refuse"),
        ({"engine_arguments": '{"model": "x"}'}, "further arguments of vllm.AsyncEngineArgs, not model"),
        ({"engine_arguments": "[]"}, "must be a JSON object"),
        ({"max_in_flight": "0"}, "must be 1 or more"),
        ({"max_start_seconds": "0"}, "must be 1 to 86400"),
    ],
)
def test_a_wrong_parameter_is_named(changed: dict[str, str], complaint: str) -> None:
    with pytest.raises(InvalidSettings, match=complaint):
        settings.ModelParameters.from_parameters(parameters() | changed, {"VLM_CHECKPOINT": "there"})


def test_a_start_that_takes_too_long_is_ended_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings.ModelParameters.from_parameters(parameters(), {"VLM_CHECKPOINT": "there"})
    core_ended = threading.Event()

    async def load(self: Any, settings: Any) -> None:
        core_ended.wait()  # as vLLM does, on the event loop itself
        raise RuntimeError("the core has ended")

    monkeypatch.setattr(engine.Engine, "_load", load)
    monkeypatch.setattr(engine.multiprocessing, "active_children", lambda: [SimpleNamespace(kill=core_ended.set)])
    with pytest.raises(engine.SlowStart, match=r"was not ready in 0\.01 s"):
        engine.Engine(dataclasses.replace(found, max_start_seconds=0.01))
    assert core_ended.is_set()


def test_it_shares_what_is_the_same_for_every_engine() -> None:
    text = (REPOSITORY / "vlm_vllm/1/model.py").read_text()
    assert "from engine_client.contract.assembler import PromptAssembler" in text
    assert "from engine_client.triton.backend.receiver import OpenPrompt, PromptReceiver" in text

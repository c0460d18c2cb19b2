"""What `vlm_tensorrt_llm` checks before it takes a prompt: its parameters, and the TensorRT-LLM that it finds.

With `stand_in/` in TensorRT-LLM's place where one is to be found.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.tensorrt_llm_model import PARAMETERS, engine, read_settings, settings, surface

# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_checkpoint_may_come_from_the_environment() -> None:
    read = settings.ModelParameters.from_parameters(PARAMETERS, {"VLM_CHECKPOINT": "there"})
    assert read.checkpoint == "there"


def test_no_checkpoint_is_no_setting() -> None:
    with pytest.raises(settings.InvalidSettings, match="VLM_CHECKPOINT"):
        settings.ModelParameters.from_parameters(PARAMETERS, {})


def test_a_parameter_that_is_not_there_is_named() -> None:
    with pytest.raises(settings.InvalidSettings, match="lacks the parameter drain_seconds"):
        settings.ModelParameters.from_parameters(
            {name: value for name, value in PARAMETERS.items() if name != "drain_seconds"}, {"VLM_CHECKPOINT": "there"}
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "int8"),
        ("tensor_parallel_size", "0"),
        ("tensor_parallel_size", "two"),
        ("kv_cache_free_fraction", "1.5"),
        ("kv_cache_free_fraction", "nan"),
        ("kv_cache_reuse", "yes"),
        ("max_in_flight", "0"),
        ("drain_seconds", "-1"),
        ("llm_arguments", "[]"),
        ("llm_arguments", "{"),
        ("llm_arguments", '{"model": "another"}'),
        ("llm_arguments", '{"multimodal_config": []}'),
        ("llm_arguments", '{"video_pruning_rate": 0.1, "multimodal_config": {"video_pruning_rate": 0.2}}'),
    ],
)
def test_a_setting_out_of_its_range_is_named_with_its_value(name: str, value: str) -> None:
    with pytest.raises(settings.InvalidSettings) as raised:
        read_settings(**{name: value})
    assert str(raised.value).startswith(f"{name} is {value!r}; it must be ")


# -- TensorRT-LLM -------------------------------------------------------------------------------------------------------


def test_a_missing_tensorrt_llm_is_named_with_the_known_releases() -> None:
    with pytest.raises(surface.UnsupportedEngine, match=r"No module named 'tensorrt_llm'.* 1\.3\.0rc23 to 1\.4\.0rc1"):
        engine.load_engine(read_settings())


def test_another_release_is_refused_unless_it_is_accepted(
    stand_in: Any, load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tensorrt_llm"], "__version__", "1.2.1")
    with pytest.raises(surface.UnsupportedEngine, match=r"tensorrt_llm is 1\.2\.1; this model knows .*1\.4\.0rc1"):
        load_tensorrt_llm()
    assert not stand_in.LLM.made
    assert "1.2.1" in load_tensorrt_llm(accept_other_versions="true").description


def test_a_build_of_a_known_release_is_known(
    load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tensorrt_llm"], "__version__", "1.3.0rc26+cu130")
    assert "1.3.0rc26+cu130" in load_tensorrt_llm().description


@pytest.mark.parametrize(
    ("where", "name", "complaint"),
    [
        ("llmapi.llm", "PreprocessedInputs", r"lacks tensorrt_llm\.llmapi\.llm\.PreprocessedInputs"),
        ("inputs.registry", "maybe_compute_mm_embed_cumsum", "lacks .*maybe_compute_mm_embed_cumsum"),
    ],
)
def test_a_release_without_a_name_that_is_used_is_refused(
    load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, where: str, name: str, complaint: str
) -> None:
    monkeypatch.delattr(importlib.import_module(f"tensorrt_llm.{where}"), name)
    with pytest.raises(surface.UnsupportedEngine, match=complaint):
        load_tensorrt_llm(accept_other_versions="true")


def test_a_release_without_a_field_that_is_used_is_refused(
    load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = importlib.import_module("tensorrt_llm.inputs.multimodal")
    monkeypatch.setattr(inputs, "MultimodalParams", inputs.Handle)
    with pytest.raises(surface.UnsupportedEngine, match=r"lacks MultimodalParams\.multimodal_input, .*mm_item_order"):
        load_tensorrt_llm()


def test_placeholders_beyond_the_vocabulary_are_refused_as_another_dialect(
    stand_in: Any, load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldProcessor(stand_in.InputProcessor):  # type: ignore[misc]
        def get_mm_token_ids(self) -> None:
            return None

        def _postprocess(self, input_ids: Any) -> Any:
            placeholders = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
            input_ids[placeholders] = self.config.text_config.vocab_size + 1
            return input_ids

    monkeypatch.setattr(stand_in.LLM, "processor_type", OldProcessor)
    with pytest.raises(surface.UnsupportedEngine, match=r"as \[0, 0, 0\] and replaces them by \[0, 101, 101\]"):
        load_tensorrt_llm()
    assert [llm.is_shut_down for llm in stand_in.LLM.made] == [True]


def test_a_family_that_is_not_known_is_refused(stand_in: Any, load_tensorrt_llm: Callable[..., Any]) -> None:
    with pytest.raises(surface.UnsupportedEngine, match="of family llava; supported: qwen2_vl"):
        load_tensorrt_llm("llava")
    assert [llm.is_shut_down for llm in stand_in.LLM.made] == [True]


@pytest.mark.parametrize(("parallel", "in_process"), [("2", False), ("1", True)])
def test_pixels_on_a_gpu_are_refused_where_their_handles_might_not_open(
    load_tensorrt_llm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, parallel: str, in_process: bool
) -> None:
    if in_process:
        monkeypatch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
    with pytest.raises(surface.UnsupportedEngine, match="set it to cpu"):
        load_tensorrt_llm(pixel_device="cuda:0", tensor_parallel_size=parallel)


def test_settings_become_arguments_of_the_engine(
    stand_in: Any, load_tensorrt_llm: Callable[..., Any], tmp_path: Path
) -> None:
    load_tensorrt_llm(
        dtype="bfloat16",
        tensor_parallel_size="2",
        kv_cache_free_fraction="0.5",
        kv_cache_dtype="fp8",
        kv_cache_reuse="false",
        llm_arguments='{"max_batch_size": 8}',
    )
    arguments = stand_in.LLM.made[0].arguments
    cache = arguments.pop("kv_cache_config")
    assert (cache.free_gpu_memory_fraction, cache.enable_block_reuse, cache.dtype) == (0.5, False, "fp8")
    assert arguments == {
        "model": str(tmp_path),
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "max_batch_size": 8,
        "guided_decoding_backend": "xgrammar",
    }


@pytest.mark.parametrize(
    "written",
    [
        '{"encoder_cache_max_bytes": 0, "max_batch_size": 8}',
        '{"multimodal_config": {"encoder_cache_max_bytes": 0}, "max_batch_size": 8}',
    ],
)
@pytest.mark.parametrize("is_nested", [True, False])
def test_arguments_of_multimodal_models_take_the_form_of_the_release(
    stand_in: Any,
    load_tensorrt_llm: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    is_nested: bool,
) -> None:
    if not is_nested:
        monkeypatch.delattr(importlib.import_module("tensorrt_llm.llmapi.llm_args"), "MultimodalConfig")
        monkeypatch.setattr(
            stand_in,
            "FURTHER_ARGUMENTS",
            {"encoder_cache_max_bytes", "guided_decoding_backend", "max_batch_size", "kv_cache_config"},
        )
    load_tensorrt_llm(llm_arguments=written)
    arguments = stand_in.LLM.made[0].arguments
    if is_nested:
        assert arguments["multimodal_config"] == {"encoder_cache_max_bytes": 0}
        assert "encoder_cache_max_bytes" not in arguments
    else:
        assert arguments["encoder_cache_max_bytes"] == 0
        assert "multimodal_config" not in arguments
    assert arguments["max_batch_size"] == 8


def test_a_release_is_given_no_empty_multimodal_config() -> None:
    assert settings.place_multimodal_arguments({"max_batch_size": 8}, is_nested=True) == {"max_batch_size": 8}


def test_the_digest_of_the_settings_is_the_same_for_the_same_settings_alone() -> None:
    first, again, other = (
        read_settings(**{"fingerprint.patch_size": patch_size, "fingerprint.model": ""}).fingerprint
        for patch_size in ("16", " 16 ", "14")
    )
    assert first == {"patch_size": "16"}
    digests = [settings.settings_digest(parts, "torch.bfloat16") for parts in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert settings.settings_digest(first, "torch.float16") != digests[0]

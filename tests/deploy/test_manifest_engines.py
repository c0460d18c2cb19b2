"""Engines in the overlays: their configuration, their memory, how they stop and are replaced."""

from __future__ import annotations

import re

import pytest

from engine_client import Fingerprint, OnMismatch
from engine_client.breaker import EndpointPolicy
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from tests.deploy.manifests import (
    GIB,
    containers,
    environment_of,
    of_kind,
    services_of,
    settings_of,
    size_bytes,
)
from tests.deploy.tools import DEPLOY

WITH_AN_ENGINE = ("overlays/prod", "overlays/colocated")


def engine_config(overlay: str) -> str:
    """The `config.pbtxt` that Triton's pods get."""
    (found,) = (
        one["data"]["config.pbtxt"]
        for one in of_kind(overlay, "ConfigMap")
        if "triton-model" in one["metadata"]["name"]
    )
    return str(found)


def test_an_engine_beside_the_service_outlives_its_drain() -> None:
    (container, settings), *_ = services_of("overlays/colocated")
    engine = next(one for one, _ in containers("overlays/colocated") if one["name"] == "triton")
    ends = container["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.drain_seconds
    assert engine["lifecycle"]["preStop"]["sleep"]["seconds"] >= ends


def test_an_engine_beside_the_service_shares_memory_that_holds_the_budget() -> None:
    (service, pod), (engine, _) = containers("overlays/colocated")
    settings = settings_of("overlays/colocated", service)
    assert settings.engine.transport == "shared-memory"
    shared = [
        next(one["name"] for one in c["volumeMounts"] if one["mountPath"] == "/dev/shm") for c in (service, engine)
    ]
    assert shared[0] == shared[1]
    volume = next(volume for volume in pod["volumes"] if volume["name"] == shared[0])
    assert volume["emptyDir"]["medium"] == "Memory"
    assert size_bytes(volume["emptyDir"]["sizeLimit"]) >= settings.memory_budget_bytes + GIB
    assert pod["securityContext"]["runAsUser"] == 1000  # one user for both, or the one's files are closed to the other


@pytest.mark.parametrize("overlay", WITH_AN_ENGINE)
def test_an_engine_s_configuration_is_the_models_own_with_a_checkpoint_and_a_fingerprint(overlay: str) -> None:
    configured, own = engine_config(overlay), (DEPLOY / "triton/models/vlm_transformers/config.pbtxt").read_text()
    filled = r'("(?:checkpoint|fingerprint\.\w+)" +value: \{ string_value: )"[^"]*"'
    assert re.sub(filled, r'\1""', configured) == re.sub(filled, r'\1""', own)
    assert not re.findall(r'"(?:checkpoint|fingerprint\.\w+)" +value: \{ string_value: "" \}', configured)


@pytest.mark.parametrize("overlay", WITH_AN_ENGINE)
def test_an_engine_is_set_up_for_the_service_s_own_model(overlay: str, model: Model) -> None:
    (_, settings), *_ = services_of(overlay)
    assert (settings.model, settings.engine.on_mismatch) == (model.name, "require")
    published = dict(re.findall(r'"(fingerprint\.\w+)" +value: \{ string_value: "([^"]*)"', engine_config(overlay)))
    comparison = Fingerprint(fingerprint_parts(model), OnMismatch.REQUIRE).compare(published)
    assert (comparison.refused, comparison.warned) == ((), ())


@pytest.mark.parametrize("overlay", WITH_AN_ENGINE)
def test_an_engine_without_its_configuration_does_not_start(overlay: str) -> None:
    """The model's own configuration names no checkpoint; that a pod waits for its ConfigMap is Kubernetes' rule."""
    container, pod = next(one for one in containers(overlay) if one[0]["name"] == "triton")
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == "model")
    assert mount["mountPath"] == "/models/vlm_transformers/config.pbtxt"
    volume = next(one for one in pod["volumes"] if one["name"] == "model")
    assert not volume["configMap"].get("optional", False)
    assert "VLM_CHECKPOINT" not in environment_of(overlay, container)


def test_engines_are_replaced_one_at_a_time_and_never_all_evicted() -> None:
    (engines,) = of_kind("overlays/prod", "StatefulSet")
    assert engines["spec"]["replicas"] >= 2
    assert engines["spec"]["minReadySeconds"] > EndpointPolicy().max_backoff_seconds
    labels = engines["spec"]["template"]["metadata"]["labels"]
    budgets = [
        one["spec"]["maxUnavailable"]
        for one in of_kind("overlays/prod", "PodDisruptionBudget")
        if one["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ]
    assert budgets == [1]

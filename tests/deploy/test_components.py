"""Each Kustomize component on its own, in particular those that no overlay uses."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from preprocessor.cli.sources import load_settings
from tests.deploy.manifests import Resource, of_kind, pods, render, services_of
from tests.deploy.test_manifests import OLDEST_KUBERNETES
from tests.deploy.tools import DEPLOY


def with_components(folder: Path, *names: str) -> tuple[Resource, ...]:
    """What Kustomize makes of the base with these components."""
    files = {
        "resources": [os.path.relpath(DEPLOY / "kustomize/base", folder)],
        "components": [os.path.relpath(DEPLOY / "kustomize/components" / name, folder) for name in names],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(files))
    return render(str(folder))


def test_each_component_that_no_overlay_uses_has_a_test_below() -> None:
    used = {
        Path(component).name
        for file in (DEPLOY / "kustomize/overlays").glob("*/kustomization.yaml")
        for component in yaml.safe_load(file.read_text()).get("components", ())
    }
    there = {folder.name for folder in (DEPLOY / "kustomize/components").iterdir()}
    assert there - used == {"autoscale-cpu", "cert-manager", "egress-traces", "egress-web", "model-directory"}


def test_the_autoscaler_by_cpu_alone_renders_too(tmp_path: Path) -> None:
    resources = with_components(tmp_path, "autoscale-cpu")
    autoscaler = next(one for one in resources if one["kind"] == "HorizontalPodAutoscaler")
    kubernetes_validate.validate(autoscaler, OLDEST_KUBERNETES, strict=True)
    deployment = next(one for one in resources if one["kind"] == "Deployment")
    assert "replicas" not in deployment["spec"]
    named = autoscaler["spec"]["metrics"][0]["containerResource"]["container"]
    assert named in {container["name"] for container in deployment["spec"]["template"]["spec"]["containers"]}


@pytest.mark.parametrize("component", ["egress-traces", "egress-web", "model-directory"])
def test_components_for_options_are_known_to_kubernetes_and_to_the_service(component: str, tmp_path: Path) -> None:
    resources = with_components(tmp_path, component)
    for resource in resources:
        kubernetes_validate.validate(resource, OLDEST_KUBERNETES, strict=True)
    (variables,) = (one["data"] for one in resources if one["kind"] == "ConfigMap")
    load_settings(argparse.Namespace(config=""), variables | {"PREPROCESSOR_ADDRESS": "127.0.0.1:1"})


def test_a_model_s_directory_is_mounted_where_the_service_looks(tmp_path: Path) -> None:
    resources = with_components(tmp_path, "model-directory")
    (variables,) = (one["data"] for one in resources if one["kind"] == "ConfigMap")
    (deployment,) = (one for one in resources if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert mounts[variables["PREPROCESSOR_MODEL"]]["readOnly"] is True


def test_cert_manager_makes_every_secret_that_is_mounted(tmp_path: Path) -> None:
    made = {
        one["spec"]["secretName"] for one in with_components(tmp_path, "cert-manager") if one["kind"] == "Certificate"
    }
    mounted = {
        volume["secret"]["secretName"]
        for _, template in pods("overlays/prod")
        for volume in template["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted
    assert mounted <= made


def test_certificates_have_the_names_that_clients_verify(tmp_path: Path) -> None:
    names = {
        one["metadata"]["name"]: one["spec"].get("dnsNames", ())
        for one in with_components(tmp_path, "cert-manager")
        if one["kind"] == "Certificate"
    }
    (_, settings), *_ = services_of("overlays/prod")
    assert settings.engine.tls_server_name in names["triton-tls"]
    assert {one["metadata"]["name"] for one in of_kind("overlays/prod", "Service")} & set(names["preprocessor-tls"])


def test_the_adapter_has_the_metric_that_the_autoscaler_asks_for() -> None:
    (config,) = render(str(DEPLOY / "prometheus/adapter"))
    (rule,) = yaml.safe_load(config["data"]["config.yaml"])["rules"]
    (autoscaler,) = of_kind("overlays/prod", "HorizontalPodAutoscaler")
    by_pods, by_cpu = autoscaler["spec"]["metrics"]
    assert rule["seriesQuery"].startswith(by_pods["pods"]["metric"]["name"] + "{")
    assert by_cpu["containerResource"]["name"] == "cpu"


def test_the_autoscaler_s_targets_are_those_of_the_document() -> None:
    text = (DEPLOY / "prometheus/README.md").read_text()
    load, cpu = re.search(r"mean of \*\*(\d+)\*\*", text), re.search(r"by cores too, at (\d+) %", text)
    assert load is not None
    assert cpu is not None
    (autoscaler,) = of_kind("overlays/prod", "HorizontalPodAutoscaler")
    by_pods, by_cpu = autoscaler["spec"]["metrics"]
    assert by_pods["pods"]["target"] == {"type": "AverageValue", "averageValue": load[1]}
    assert by_cpu["containerResource"]["target"]["averageUtilization"] == int(cpu[1])

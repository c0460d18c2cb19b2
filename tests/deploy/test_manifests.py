"""Every overlay as Kustomize renders it: valid by Kubernetes' schemas, and its pods fit what the service is."""

from __future__ import annotations

import argparse
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from preprocessor.cli.sources import load_settings
from tests.deploy.manifests import (
    GIB,
    containers,
    cores,
    of_kind,
    overlays,
    render,
    services_of,
    settings_of,
    size_bytes,
)
from tests.deploy.tools import DEPLOY, REPOSITORY
from tests.monitoring.documented import documented, names_in

OLDEST_KUBERNETES = "1.30"  # the first with preStop.sleep on by default
OF_OPERATORS = {"PodMonitor", "PrometheusRule", "Issuer", "Certificate"}  # kinds that Kubernetes itself does not know
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
@overlays
def test_kubernetes_knows_every_field(overlay: str, version: str) -> None:
    for resource in render(overlay):
        if resource["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(resource, version, strict=True)


@overlays
def test_pods_pass_the_restricted_pod_security_standard(overlay: str) -> None:
    """And beyond it: the root file system is read-only, and no service account token is mounted."""
    for container, pod in containers(overlay):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert {"hostPath"}.isdisjoint(key for volume in pod.get("volumes", ()) for key in volume)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@overlays
def test_variables_of_other_services_do_not_mix_with_settings(overlay: str) -> None:
    assert all(pod["enableServiceLinks"] is False for _, pod in containers(overlay))


@overlays
def test_every_container_says_what_it_takes(overlay: str) -> None:
    for container, pod in containers(overlay):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests.keys() >= {"cpu", "memory"}
        assert limits["memory"] == requests["memory"], "memory that was not asked for is taken away by killing"
        assert cores(limits["cpu"]) >= cores(requests["cpu"])
        assert all(size.get("sizeLimit") for volume in pod["volumes"] if (size := volume.get("emptyDir")) is not None)


@overlays
def test_mounted_volumes_exist_and_are_writable_where_needed(overlay: str) -> None:
    for container, pod in containers(overlay):
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes
        assert container["name"] == "envoy" or "/tmp" in mounts
    used = {mount["name"] for container, _ in containers(overlay) for mount in container["volumeMounts"]}
    assert {volume["name"] for _, pod in containers(overlay) for volume in pod["volumes"]} == used


@overlays
def test_the_service_accepts_its_settings(overlay: str) -> None:
    for container, settings in services_of(overlay):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert settings.address == f"0.0.0.0:{ports['grpc']}"
        assert settings.http_address == f"0.0.0.0:{ports['http']}"


@overlays
def test_memory_limits_hold_the_budget_and_the_service_s_own_memory(overlay: str) -> None:
    for container, settings in services_of(overlay):
        assert size_bytes(container["resources"]["limits"]["memory"]) >= settings.memory_budget_bytes + GIB
        assert float(container["resources"]["limits"]["cpu"]).is_integer(), "--workers is the limit rounded down"


@overlays
def test_a_pod_is_given_the_time_that_its_drain_takes(overlay: str) -> None:
    for container, pod in containers(overlay):
        asleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        exits = re.search(r"--exit-timeout-secs=(\d+)", " ".join(container.get("args", ())))
        drain = settings_of(overlay, container).drain_seconds if container["name"] == "preprocessor" else 0.0
        takes = asleep + max(drain, float(exits[1]) if exits and not asleep else 0.0)
        assert pod["terminationGracePeriodSeconds"] >= takes + 5, container["name"]


@overlays
def test_probes_ask_what_is_there(overlay: str) -> None:
    served = {
        "preprocessor": {"/livez", "/readyz"},
        "envoy": {"/readyz"},
        "triton": {"/v2/health/live", "/v2/models/vlm_transformers/ready"},
    }
    for container, _ in containers(overlay):
        ports = {port["name"] for port in container["ports"]}
        assert container.keys() >= {"livenessProbe", "readinessProbe"}
        for probe in (container[name] for name in PROBES if name in container):
            how = probe.get("httpGet") or probe["tcpSocket"]
            assert how["port"] in ports
            assert how.get("path", "/readyz") in served[container["name"]]
    for container, _ in services_of(overlay):
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez", "an engine that is down must restart nothing"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_deployment_with_an_autoscaler_sets_no_replica_count() -> None:
    (autoscaler,) = of_kind("overlays/prod", "HorizontalPodAutoscaler")
    target = autoscaler["spec"]["scaleTargetRef"]
    (deployment,) = (one for one in of_kind("overlays/prod", "Deployment") if one["metadata"]["name"] == target["name"])
    assert "replicas" not in deployment["spec"]


def test_metrics_of_autoscalers_and_alerts_exist() -> None:
    known = set(documented())  # which tests/monitoring compares with what the service says
    asked = set()
    for rules in of_kind("overlays/prod", "PrometheusRule"):
        asked |= set().union(*(names_in(rule["expr"]) for group in rules["spec"]["groups"] for rule in group["rules"]))
    for autoscaler in of_kind("overlays/prod", "HorizontalPodAutoscaler"):
        asked |= {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"] if "pods" in metric}
    assert "preprocessor_load_ratio" in asked
    assert asked <= known


def test_compose_passes_settings_that_exist_and_as_much_memory_as_they_take() -> None:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    service = services["preprocessor"]
    variables = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in service["environment"].items()}
    settings = load_settings(argparse.Namespace(config=""), variables).settings
    assert settings.worker_count == service["cpus"]
    assert int(service["mem_limit"].removesuffix("g")) * GIB >= settings.memory_budget_bytes + GIB
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain_seconds
    for name, one in services.items():
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges"], name
        assert (REPOSITORY / one["build"]["dockerfile"]).is_file() if "build" in one else ":" in one["image"], name

"""Every overlay as Kustomize renders it: valid by Kubernetes' schemas, and consistent with the service."""

from __future__ import annotations

import argparse
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine_client import Fingerprint, OnMismatch
from engine_client.breaker import EndpointPolicy
from preprocessor.cli.sources import load_settings
from preprocessor.config import ServeSettings
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.service.health import SERVICE_NAME, health_name
from tests.deploy.dockerfile import instructions
from tests.deploy.manifests import (
    OVERLAYS,
    Resource,
    containers,
    cores,
    environment_of,
    of_kind,
    pods,
    render,
    size_bytes,
)
from tests.deploy.tools import DEPLOY, REPOSITORY
from tests.monitoring.documented import documented, names_in

OLDEST_KUBERNETES = "1.30"  # the first with preStop.sleep on by default
GIB = 1 << 30
OF_OPERATORS = {"PodMonitor", "PrometheusRule", "Issuer", "Certificate"}  # kinds that Kubernetes itself does not know
REPLICAS = {"preprocessor": SERVICE_NAME, "generate": health_name("Generate")}
"""Envoy's clusters that are the replicas, and the name by which each asks for their health."""
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
WITH_AN_ENGINE = ("overlays/prod", "overlays/colocated")
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def engine_config(overlay: str) -> str:
    """The `config.pbtxt` that Triton's pods get."""
    (found,) = (
        one["data"]["config.pbtxt"]
        for one in of_kind(overlay, "ConfigMap")
        if "triton-model" in one["metadata"]["name"]
    )
    return str(found)


def settings_of(overlay: str, container: Resource) -> ServeSettings:
    """The settings of `preprocessor serve` from a container's variables and the image's."""
    image = dict(re.findall(r"(PREPROCESSOR_\w+)=(\S+)", " ".join(text for _, text in instructions("Dockerfile"))))
    return load_settings(argparse.Namespace(config=""), image | environment_of(overlay, container)).settings


def services_of(overlay: str) -> list[tuple[Resource, ServeSettings]]:
    """Every container of the service, with its settings."""
    found = [(one, settings_of(overlay, one)) for one, _ in containers(overlay) if one["name"] == "preprocessor"]
    assert found
    return found


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


@overlays
def test_labels_lead_to_pods(overlay: str) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods(overlay)]

    def chosen(selector: dict[str, str]) -> bool:
        return any(selector.items() <= one.items() for one in labels)

    for deployment in of_kind(overlay, "Deployment") + of_kind(overlay, "StatefulSet"):
        assert chosen(deployment["spec"]["selector"]["matchLabels"])
        for spread in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            assert spread["labelSelector"] == deployment["spec"]["selector"]
    for service in of_kind(overlay, "Service"):
        assert chosen(service["spec"]["selector"])
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for one in of_kind(overlay, kind):
            assert chosen(one["spec"]["selector"]["matchLabels"])
    for policy in of_kind(overlay, "NetworkPolicy"):
        assert chosen(policy["spec"]["podSelector"]["matchLabels"])


@overlays
def test_named_ports_exist(overlay: str) -> None:
    by_label = {
        template["metadata"]["labels"]["app.kubernetes.io/name"]: {
            port["name"] for container in template["spec"]["containers"] for port in container["ports"]
        }
        for _, template in pods(overlay)
    }
    for service in of_kind(overlay, "Service"):
        ports = by_label[service["spec"]["selector"]["app.kubernetes.io/name"]]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for monitor in of_kind(overlay, "PodMonitor"):
        ports = by_label[monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]]
        assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= ports
    for policy in of_kind(overlay, "NetworkPolicy"):
        ports = by_label[policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]]
        opened = {one["port"] for rule in policy["spec"].get("ingress", ()) for one in rule["ports"]}
        assert opened <= ports


def test_network_policies_let_prometheus_reach_its_targets() -> None:
    monitors = of_kind("overlays/prod", "PodMonitor")
    assert {one["metadata"]["name"] for one in monitors} == {name for name, _ in pods("overlays/prod")}
    for monitor in monitors:
        (policy,) = (
            one
            for one in of_kind("overlays/prod", "NetworkPolicy")
            if one["spec"]["podSelector"] == monitor["spec"]["selector"] and "Ingress" in one["spec"]["policyTypes"]
        )
        monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        let_in = {
            one["port"]
            for rule in policy["spec"]["ingress"]
            if monitoring in rule.get("from", ())
            for one in rule["ports"]
        }
        assert {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]} <= let_in


def test_network_policies_allow_the_calls_that_pods_make() -> None:
    def ways_out(name: str) -> set[tuple[str, int]]:
        (policy,) = (one for one in of_kind("overlays/prod", "NetworkPolicy") if one["metadata"]["name"] == name)
        return {
            (to["podSelector"]["matchLabels"].get("app.kubernetes.io/name", "dns"), port["port"])
            for rule in policy["spec"]["egress"]
            for to in rule["to"]
            for port in rule["ports"]
        }

    assert ways_out("preprocessor") == {("dns", 53), ("triton", 8001)}
    assert ways_out("envoy") == {("dns", 53), ("preprocessor", 50051)}


def test_caller_metadata_is_configured_only_behind_envoy() -> None:
    config = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    http = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = http["route_config"]["virtual_hosts"]
    (_, settings), *_ = services_of("overlays/prod")
    assert host["request_headers_to_remove"] == [settings.access.caller_metadata]
    assert {one["header"]["key"] for one in host["request_headers_to_add"]} == {settings.access.caller_metadata}
    (_, alone), *_ = services_of("base")
    assert alone.access.caller_metadata == "", "without a proxy before it anybody could say who he is"


def test_envoy_with_tls_is_envoy_with_a_transport_socket() -> None:
    plain, tls = (
        yaml.safe_load((DEPLOY / path).read_text())
        for path in ("envoy/envoy.yaml", "kustomize/components/tls/envoy.yaml")
    )
    socket = tls["static_resources"]["listeners"][0]["filter_chains"][0].pop("transport_socket")
    assert socket["typed_config"]["require_client_certificate"] is True
    assert tls == plain, "run make reference"
    (config,) = (one["data"] for one in of_kind("overlays/prod", "ConfigMap") if "envoy.yaml" in one["data"])
    assert "DownstreamTlsContext" in config["envoy.yaml"]


def test_addresses_in_settings_name_existing_services() -> None:
    (_, settings), *_ = services_of("overlays/prod")
    (engines,) = of_kind("overlays/prod", "StatefulSet")
    service = engines["spec"]["serviceName"]
    pods_of_engines = {f"{engines['metadata']['name']}-{number}" for number in range(engines["spec"]["replicas"])}
    assert {address.partition(":")[0] for address in settings.engine.address.split(",")} == {
        f"{pod}.{service}" for pod in pods_of_engines
    }
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind("overlays/prod", "Service")}
    assert services[service]["clusterIP"] == "None", "pods have names of their own below a headless Service alone"
    clusters = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())["static_resources"]["clusters"]
    for upstream in (one for one in clusters if one["name"] in REPLICAS):
        endpoints = upstream["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = endpoints[0]["endpoint"]["address"]["socket_address"]
        replicas = services[address["address"]]
        assert replicas["clusterIP"] == "None"
        assert address["port_value"] in {port["port"] for port in replicas["ports"]}


def test_envoy_asks_health_by_names_that_the_service_has() -> None:
    clusters = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())["static_resources"]["clusters"]
    asked = {one["name"]: one["health_checks"][0]["grpc_health_check"] for one in clusters if one["name"] in REPLICAS}
    assert {name: check["service_name"] for name, check in asked.items()} == REPLICAS


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


def test_envoy_refuses_calls_before_its_memory_is_full() -> None:
    config = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    heap = config["overload_manager"]["resource_monitors"][0]["typed_config"]["max_heap_size_bytes"]
    envoy = next(container for container, _ in containers("overlays/prod") if container["name"] == "envoy")
    assert heap <= size_bytes(envoy["resources"]["limits"]["memory"]) * 7 // 8


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

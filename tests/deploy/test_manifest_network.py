"""Who reaches whom in the overlays: labels, ports, policies, addresses, and Envoy's configuration."""

from __future__ import annotations

import yaml

from preprocessor.service.health import SERVICE_NAME, health_name
from tests.deploy.manifests import (
    containers,
    of_kind,
    overlays,
    pods,
    services_of,
    size_bytes,
)
from tests.deploy.tools import DEPLOY

REPLICAS = {
    "preprocessor": SERVICE_NAME,
    "preprocessor-by-media": SERVICE_NAME,
    "generate": health_name("Generate"),
    "generate-by-media": health_name("Generate"),
}
"""Envoy's clusters that are the replicas, and the name by which each asks for their health."""


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
    assert alone.access.caller_metadata == "", "without a proxy before it anybody could claim any name"


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


def test_envoy_refuses_calls_before_its_memory_is_full() -> None:
    config = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    heap = config["overload_manager"]["resource_monitors"][0]["typed_config"]["max_heap_size_bytes"]
    envoy = next(container for container, _ in containers("overlays/prod") if container["name"] == "envoy")
    assert heap <= size_bytes(envoy["resources"]["limits"]["memory"]) * 7 // 8

"""The rendered manifests of deploy/kustomize, by the Kustomize in kubectl."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from preprocessor.cli.sources import load_settings
from preprocessor.config import ServeSettings
from tests.deploy.dockerfile import instructions
from tests.deploy.tools import DEPLOY, tool
from tests.waiting import PATIENCE_SECONDS

Resource = dict[str, Any]

GIB = 1 << 30
OVERLAYS = ("base", "overlays/dev", "overlays/prod", "overlays/colocated")
overlays = pytest.mark.parametrize("overlay", OVERLAYS)
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


@cache
def render(overlay: str) -> tuple[Resource, ...]:
    """The resources of a folder of deploy/kustomize."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", DEPLOY / "kustomize" / overlay],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, kind: str) -> list[Resource]:
    return [resource for resource in render(overlay) if resource["kind"] == kind]


def pods(overlay: str) -> Iterator[tuple[str, Resource]]:
    """Name and pod template of every Deployment and StatefulSet."""
    found = of_kind(overlay, "Deployment") + of_kind(overlay, "StatefulSet")
    assert found, f"no Deployment in {overlay}: nothing would be looked at"
    for resource in found:
        yield resource["metadata"]["name"], resource["spec"]["template"]


def containers(overlay: str) -> Iterator[tuple[Resource, Resource]]:
    """Every container, with its pod's spec."""
    for _, template in pods(overlay):
        for container in template["spec"]["containers"]:
            yield container, template["spec"]


def environment_of(overlay: str, container: Resource) -> dict[str, str]:
    """The variables of a container, ConfigMaps included."""
    maps = {one["metadata"]["name"]: one.get("data", {}) for one in of_kind(overlay, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    return found | {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


def size_bytes(quantity: str) -> int:
    """Kubernetes' `4Gi`."""
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity)
    assert match is not None, f"{quantity} is not a size in Ki, Mi or Gi"
    return int(match[1]) * _UNITS[match[2]]


def cores(quantity: str) -> float:
    """Kubernetes' `4` or `250m`."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def settings_of(overlay: str, container: Resource) -> ServeSettings:
    """The settings of `preprocessor serve` from a container's variables and the image's."""
    image = dict(re.findall(r"(PREPROCESSOR_\w+)=(\S+)", " ".join(text for _, text in instructions("Dockerfile"))))
    return load_settings(argparse.Namespace(config=""), image | environment_of(overlay, container)).settings


def services_of(overlay: str) -> list[tuple[Resource, ServeSettings]]:
    """Every container of the service, with its settings."""
    found = [(one, settings_of(overlay, one)) for one, _ in containers(overlay) if one["name"] == "preprocessor"]
    assert found
    return found

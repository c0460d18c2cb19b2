"""The real Envoy with the deployed configuration; only addresses and paths are changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.child_process import held_ports
from tests.deploy.tools import DEPLOY, envoy_binary
from tests.local_service import get_text
from tests.waiting import PATIENCE_SECONDS, eventually

DIRECTORY = DEPLOY / "envoy"


WITH_TLS = DEPLOY / "kustomize/components/tls/envoy.yaml"


def configuration(
    replica_ports: Sequence[int], admin_port: int, port: int, http_port: int, tls: Path | None = None
) -> dict[str, Any]:
    """`envoy.yaml` with addresses of this machine in the place of the cluster's.

    Args:
        tls: A folder with tls.crt, tls.key and ca.crt, for the configuration that has TLS for callers.
    """
    text = (DIRECTORY / "envoy.yaml" if tls is None else WITH_TLS).read_text()
    text = text.replace("/etc/envoy/tls", str(tls)).replace("/etc/envoy/", f"{DIRECTORY}/")
    config: dict[str, Any] = yaml.safe_load(text)
    config["admin"]["address"] = _loopback(admin_port)
    for listener, its_port in zip(config["static_resources"]["listeners"], (port, http_port), strict=True):
        listener["address"] = _loopback(its_port)
    for cluster in config["static_resources"]["clusters"]:
        ports = [admin_port] if cluster["name"] == "admin" else replica_ports
        endpoints = cluster["load_assignment"]["endpoints"][0]
        endpoints["lb_endpoints"] = [{"endpoint": {"address": _loopback(port)}} for port in ports]
    return config


class Envoy:
    """A running Envoy.

    Attributes:
        address: Where callers connect.
        http_address: Where probes and Prometheus do.
        access_log: Its lines so far are in this file, among others.
    """

    def __init__(self, address: str, http_address: str, admin_address: str, access_log: Path) -> None:
        self.address = address
        self.http_address = http_address
        self.access_log = access_log
        self._admin_address = admin_address

    async def healthy_ports(self, cluster: str = "preprocessor") -> set[int]:
        """Ports of the replicas that get calls; `generate` is the cluster of those that get `Generate`."""
        clusters = json.loads(await self._ask("/clusters?format=json"))["cluster_statuses"]
        hosts = next(one.get("host_statuses", []) for one in clusters if one["name"] == cluster)
        healthy = [host for host in hosts if host["health_status"].keys() <= {"eds_health_status"}]
        return {host["address"]["socket_address"]["port_value"] for host in healthy}

    async def until_healthy(self, ports: set[int], cluster: str = "preprocessor") -> None:
        """Return when these replicas get calls and no others."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (healthy := await self.healthy_ports(cluster)) != ports:
            assert time.monotonic() < deadline, f"{healthy} are healthy, and not {ports}"
            await asyncio.sleep(0.02)

    async def stat(self, name: str) -> int:
        """A counter or gauge of the replicas' cluster, such as `upstream_rq_retry`."""
        stats = json.loads(await self._ask(f"/stats?format=json&filter=^cluster.preprocessor.{name}$"))["stats"]
        return int(stats[0]["value"])

    async def _ask(self, path: str) -> str:
        return await get_text(self._admin_address, path)


@contextlib.asynccontextmanager
async def running_envoy(directory: Path, replica_ports: Sequence[int], tls: Path | None = None) -> AsyncIterator[Envoy]:
    """Envoy before the replicas, once it has found all of them healthy.

    Args:
        tls: A folder with certificates, which callers then need too.
    """
    with held_ports(3) as (admin_port, port, http_port):
        path = directory / "envoy.json"
        path.write_text(json.dumps(configuration(replica_ports, admin_port, port, http_port, tls)))
        log = directory / "envoy.log"
        command = [envoy_binary(), "--config-path", str(path), "--concurrency", "2", "--disable-hot-restart"]
        process = _start([*command, "--log-level", "warning"], log)
        envoy = Envoy(f"127.0.0.1:{port}", f"127.0.0.1:{http_port}", f"127.0.0.1:{admin_port}", log)
        try:
            await eventually(lambda: process.poll() is not None or _is_open(admin_port))
            assert process.poll() is None, log.read_text()
            for cluster in ("preprocessor", "preprocessor-by-media"):
                await envoy.until_healthy(set(replica_ports), cluster)
            yield envoy
        finally:
            process.kill()
            process.wait()


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == os.EX_OK


def _loopback(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

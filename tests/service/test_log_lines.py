"""The JSON log of a real `preprocessor serve`, from start to stop, with request IDs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.media import photo
from tests.service.conftest import FRONT_COUNT, chat, image
from tests.waiting import PATIENCE_SECONDS

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = "the-duke-of-the-prompt"
SECRET_FILE = b"the-duchess-of-the-file"

# As the `preprocessor` command does, and says at last whether anything has imported OpenTelemetry.
_PROGRAM = """
import sys
from preprocessor.__main__ import main
status = main(sys.argv[1:])
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
sys.exit(status)
"""


@dataclass
class Service:
    address: str
    lines: list[str] = field(default_factory=list)
    modules: str = ""

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture(scope="module")
def stopped() -> Iterator[Service]:
    """A service that has answered one call, refused another, and ended."""
    free = ("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "serve", *free, "--log-format", "json", "--log-level", "debug"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    service = Service("")
    try:
        for line in process.stderr:
            service.lines.append(line)
            if found := re.search(r"on grpc (\S+),", line):
                service.address = found[1]
                break
        with grpc.insecure_channel(service.address, options=CHANNEL_OPTIONS) as channel:
            _call(channel, image("photo", photo(90, 60)), "good")
            with pytest.raises(grpc.RpcError):
                _call(channel, image("photo", SECRET_FILE), "bad")
    finally:
        process.send_signal(signal.SIGTERM)
        service.modules, rest = process.communicate(timeout=PATIENCE_SECONDS)
    service.lines += rest.splitlines()
    yield service


def _call(channel: grpc.Channel, medium: pb.Media, request_id: str) -> None:
    metadata = (("x-request-id", request_id), ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"))
    message = pb.PrepareRequest(spec=chat(medium, SECRET))
    list(pb_grpc.PreprocessorStub(channel).Prepare(iter([message]), metadata=metadata, timeout=PATIENCE_SECONDS))


def test_each_line_is_an_object_with_a_time_a_level_a_logger_and_a_message(stopped: Service) -> None:
    for line in stopped.objects:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("DEBUG", "INFO", "WARNING")
        assert line["logger"]
        assert line["message"]
    assert stopped.objects[-1]["message"] == "stopped"


def test_a_line_about_a_request_names_it_and_its_trace(stopped: Service) -> None:
    [refused] = [line for line in stopped.objects if "refused" in line["message"]]
    assert (refused["request_id"], refused["trace_id"]) == ("bad", TRACE_ID)
    assert refused["message"].endswith("INVALID_ARGUMENT NOT_MEDIA")
    ended = [line for line in stopped.objects if line["message"].startswith("Prepare ended")]
    assert [line["request_id"] for line in ended] == ["good", "bad"]
    about_none = [line for line in stopped.objects if "serving" in line["message"] or line["message"] == "stopped"]
    assert about_none
    assert all("request_id" not in line for line in about_none)


def test_the_first_line_tells_the_counts_as_they_are_configured(stopped: Service) -> None:
    (line,) = (line["message"] for line in stopped.objects if "serving" in line["message"])
    fronts = {1: "1 front", 2: "2 fronts"}[FRONT_COUNT]
    assert f"; 1 worker; {fronts}; memory budget" in line


def test_no_log_line_contains_request_content(stopped: Service) -> None:
    log = "\n".join(stopped.lines)
    assert SECRET not in log
    assert SECRET_FILE.decode() not in log


def test_without_a_collector_opentelemetry_is_not_imported(stopped: Service) -> None:
    assert stopped.modules == "[]\n"

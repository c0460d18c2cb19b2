"""Three real replicas behind a real Envoy with the deployed configuration."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from preprocessor.client import AsyncClient, chat, image
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.client.routing import MEDIA_DIGEST
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.deploy.balanced import PHOTO, Balanced
from tests.deploy.calls import SECONDS, BegunAnswer, HeldUpload, prepare
from tests.deploy.envoy import DIRECTORY, Envoy, configuration, running_envoy
from tests.deploy.replicas import running_replicas
from tests.deploy.tools import envoy_binary
from tests.engine.certificates import SERVER_NAME, Authority, Signed
from tests.local_service import LOOPBACK
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import ONE_CALL
from tests.waiting import PATIENCE_SECONDS, eventually

pytestmark = pytest.mark.timeout(300)  # replicas take seconds to start, more on a busy machine

LARGE_CLIP = moving_shapes_clip(seconds=2, width=640, height=480)
"""Some 50 MB of pixels."""
SERVICE = "/preprocessor.v1.Preprocessor"
CONVERSATION_COUNT, TURN_COUNT = 30, 4


@pytest_asyncio.fixture(scope="module")
async def together(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Balanced]:
    directory = tmp_path_factory.mktemp("balanced")
    # As many uploads as all tests hold open: on a busy machine those that others wait for could be ended as slow.
    options = "--max-uploads", "64", "--max-message-bytes", "4MiB"
    async with (
        running_replicas(directory, 3, "--memory-budget", "1GiB", "--drain-seconds", "60", *options) as replicas,
        running_envoy(directory, [replica.port for replica in replicas]) as envoy,
        grpc.aio.insecure_channel(envoy.address, options=CHANNEL_OPTIONS) as channel,
    ):
        yield Balanced(replicas, envoy, channel)


@pytest_asyncio.fixture
async def balanced(together: Balanced) -> Balanced:
    """All three, started again where a test has ended them."""
    ended = [replica for replica in together.replicas if not replica.is_running]
    for replica in ended:
        replica.launch()
    for replica in ended:
        await replica.listening()
    await together.envoy.until_healthy({replica.port for replica in together.replicas})
    await together.connect()
    return together


def ask(address: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and body of a request as curl sends it."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, headers)
    try:
        with LOOPBACK.open(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_envoy_accepts_the_configuration_and_calls_nothing_in_it_outdated(tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(configuration([1, 2], 3, 4, 5)))
    done = subprocess.run(
        [envoy_binary(), "--mode", "validate", "--config-path", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


async def test_calls_under_way_are_spread_within_a_fifth(balanced: Balanced) -> None:
    uploads = [HeldUpload(balanced.channel, PHOTO) for _ in range(90)]
    await asyncio.gather(*(upload.begin() for upload in uploads))
    counts = await balanced.all_in_flight(90)
    assert all(abs(count - 30) <= 6 for count in counts), counts
    assert len(set(await asyncio.gather(*(upload.finish() for upload in uploads)))) == 1


@pytest.mark.parametrize("is_named", [True, False])
async def test_turns_of_a_conversation_find_their_media_where_the_client_names_them(
    balanced: Balanced, is_named: bool
) -> None:
    """The hit rate of conversations of four turns, of which a single replica would have three hits."""
    before = await balanced.items()
    async with AsyncClient(balanced.envoy.address) as client:
        for number in range(CONVERSATION_COUNT):
            picture = photo(64, 48, seed=2 * number + is_named)
            for turn in range(TURN_COUNT):
                if is_named:
                    more = [image(photo(48, 64, seed=TURN_COUNT * number + turn))] if turn else []
                    await client.prepare(chat([{"role": "user", "content": [image(picture), *more]}]))
                else:
                    await prepare(balanced.channel, picture)
    found = await balanced.items()
    hit_count = found["hit"] - before["hit"]
    possible_count = CONVERSATION_COUNT * (TURN_COUNT - 1)
    print(f"hits: {hit_count} of {possible_count} possible")
    if is_named:
        assert hit_count >= 0.95 * possible_count
    else:  # by lot, a turn meets one of the replicas that have had an earlier one: 0, 1/3, 5/9, 19/27 of the time
        assert hit_count < 0.8 * possible_count


async def test_a_medium_that_everybody_asks_for_does_not_fill_its_replica(balanced: Balanced) -> None:
    """It gets at most 1.5 times the mean, rounded up; Envoy's two threads may each choose it for one more."""
    uploads = [HeldUpload(balanced.channel, PHOTO, ((MEDIA_DIGEST, "popular"),)) for _ in range(30)]
    await asyncio.gather(*(upload.begin() for upload in uploads))
    counts = await balanced.all_in_flight(len(uploads))
    assert 10 < max(counts) <= 17, counts
    assert len(set(await asyncio.gather(*(upload.finish() for upload in uploads)))) == 1


async def test_a_call_that_a_full_replica_refuses_is_served_by_another(balanced: Balanced) -> None:
    full = balanced.replicas[0]
    async with full.workers_stopped(), grpc.aio.insecure_channel(full.address) as direct:
        refused = asyncio.Event()

        async def wait_in_queue() -> None:
            request = pb.CountTokensRequest(spec=pb.PrepareSpec(text="Hi"))
            try:
                await pb_grpc.PreprocessorStub(direct).CountTokens(iter([request]), timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                refused.set()

        waiting = [asyncio.create_task(wait_in_queue()) for _ in range(300)]  # --max-queued is 256
        await asyncio.wait_for(refused.wait(), SECONDS)
        tried_again = await balanced.envoy.stat("upstream_rq_retry")
        answers = await asyncio.gather(*(prepare(balanced.channel, PHOTO) for _ in range(24)))
        assert len(set(answers)) == 1
        assert await balanced.envoy.stat("upstream_rq_retry") > tried_again
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_curl_counts_tokens_and_reads_the_model(balanced: Balanced) -> None:
    status, body = await asyncio.to_thread(ask, balanced.envoy.address, f"{SERVICE}/GetModel", {})
    assert (status, json.loads(body)["name"]) == (200, "qwen3-vl")
    inline = {"key": "photo", "modality": "MODALITY_IMAGE", "inline_data": base64.b64encode(PHOTO).decode()}
    message = {"role": "user", "parts": [{"media_key": "photo"}, {"text": "What is this?"}]}
    spec = {"chat": {"messages": [message]}, "media": [inline]}
    status, body = await asyncio.to_thread(ask, balanced.envoy.address, f"{SERVICE}/CountTokens", [{"spec": spec}])
    answer = json.loads(body)
    assert (status, answer["items"][0]["source"]["image"]["format"]) == (200, "JPEG")
    assert answer["token_count"] > answer["items"][0]["token_count"] > 0


async def test_curl_reads_a_stream_of_json_lines(balanced: Balanced) -> None:
    half = len(PHOTO) // 2
    chunks = [
        {"key": "photo", "offset_bytes": 0, "data": base64.b64encode(PHOTO[:half]).decode()},
        {"key": "photo", "offset_bytes": half, "data": base64.b64encode(PHOTO[half:]).decode(), "last": True},
    ]
    media = [{"key": "photo", "modality": "MODALITY_IMAGE", "chunked": {}}]
    message = {"role": "user", "parts": [{"media_key": "photo"}]}
    spec = {"chat": {"messages": [message]}, "media": media}
    body = [{"spec": spec}, *({"chunk": chunk} for chunk in chunks)]
    status, text = await asyncio.to_thread(ask, balanced.envoy.address, f"{SERVICE}/Prepare", body)
    lines = [json.loads(line) for line in text.splitlines()]
    assert status == 200
    assert [next(iter(line)) for line in lines] == ["header", "rows", "report"]


async def test_an_error_reaches_curl_with_its_reason(balanced: Balanced) -> None:
    status, body = await asyncio.to_thread(
        ask, balanced.envoy.address, f"{SERVICE}/CountTokens", [{"spec": {"text": ""}}]
    )
    assert status == 400
    assert json.loads(body)["details"][0]["reason"] == "EMPTY_PROMPT"


async def test_a_field_at_fault_reaches_curl(balanced: Balanced) -> None:
    spec: dict[str, Any] = {"chat": {"messages": []}}
    status, body = await asyncio.to_thread(ask, balanced.envoy.address, f"{SERVICE}/CountTokens", [{"spec": spec}])
    assert status == 400
    assert json.loads(body)["details"][1]["field_violations"][0]["field"] == "chat.messages"


async def test_two_ways_to_choose_frames_are_refused_in_json(balanced: Balanced) -> None:
    sampling = {"fps": 1, "frame_count": 4}
    medium = {"key": "clip", "modality": "MODALITY_VIDEO", "inline_data": "", "sampling": sampling}
    status, body = await asyncio.to_thread(
        ask, balanced.envoy.address, f"{SERVICE}/CountTokens", [{"spec": {"text": "Hi", "media": [medium]}}]
    )
    assert (status, "choice" in body) == (400, True), body


@pytest.mark.parametrize("path", ["/", "/metrics", "/readyz", f"{SERVICE}/Nothing", "/grpc.health.v1.Health/Check"])
async def test_other_paths_are_not_found(balanced: Balanced, path: str) -> None:
    assert (await asyncio.to_thread(ask, balanced.envoy.address, path))[0] == 404


def test_envoy_reads_the_file_itself(tmp_path: Path) -> None:
    """Other tests write it with Python; here Envoy parses the original, for example its YAML anchors."""
    path = tmp_path / "envoy.yaml"
    path.write_text((DIRECTORY / "envoy.yaml").read_text().replace("/etc/envoy/", f"{DIRECTORY}/"))
    command = [envoy_binary(), "--mode", "validate", "--config-path", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def test_envoy_says_that_it_is_ready(balanced: Balanced) -> None:
    assert (await asyncio.to_thread(ask, balanced.envoy.http_address, "/readyz"))[0] == 200


async def test_reflection_passes_for_grpcurl(balanced: Balanced) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(balanced.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = [one async for one in stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)]
    assert "preprocessor.v1.Preprocessor" in {one.name for one in answer.list_services_response.service}


async def test_callers_with_tls_are_served_and_others_refused(balanced: Balanced, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "authority"), Authority(tmp_path, "stranger")
    ports = [replica.port for replica in balanced.replicas]
    async with running_envoy(tmp_path, ports, tls=certificates(tmp_path, authority)) as envoy:
        for signed, is_served in ((authority.sign("caller"), True), (stranger.sign("intruder"), False), (None, False)):
            async with grpc.aio.secure_channel(envoy.address, *as_caller(authority, signed)) as channel:
                asked = pb_grpc.PreprocessorStub(channel).GetModel(pb.GetModelRequest(), timeout=SECONDS)
                if is_served:
                    assert (await asked).name == "qwen3-vl"
                else:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await asked


def certificates(folder: Path, authority: Authority) -> Path:
    """A folder such as a Secret is mounted as."""
    server, mounted = authority.sign(SERVER_NAME), folder / "tls"
    mounted.mkdir()
    for name, source in (("tls.crt", server.certificate), ("tls.key", server.key), ("ca.crt", authority.certificate)):
        shutil.copy(source, mounted / name)
    return mounted


def as_caller(authority: Authority, signed: Signed | None) -> tuple[grpc.ChannelCredentials, Any]:
    """Credentials and options of a channel."""
    own = (signed.key.read_bytes(), signed.certificate.read_bytes()) if signed else ()
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), *own)
    return credentials, (("grpc.ssl_target_name_override", SERVER_NAME),)


def calls_logged(envoy: Envoy, method: str) -> list[dict[str, Any]]:
    """Lines of the access log so far, in order, of one method."""
    lines = [json.loads(line) for line in envoy.access_log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["method"] == f"{SERVICE}/{method}"]


async def test_quotas_apply_to_the_caller_that_envoy_names(tmp_path: Path) -> None:
    """By certificate; the caller's own header is ignored."""
    authority = Authority(tmp_path, "authority")
    quota = ("--caller-metadata", "x-caller", "--max-calls-per-second", str(ONE_CALL))
    async with (
        running_replicas(tmp_path, 1, "--memory-budget", "1GiB", *quota) as (replica,),
        running_envoy(tmp_path, [replica.port], tls=certificates(tmp_path, authority)) as envoy,
    ):

        async def ask_as(name: str, **metadata: str) -> grpc.StatusCode:
            async with grpc.aio.secure_channel(envoy.address, *as_caller(authority, authority.sign(name))) as channel:
                call = pb_grpc.PreprocessorStub(channel).GetModel(
                    pb.GetModelRequest(), metadata=tuple(metadata.items()), timeout=SECONDS
                )
                return await call.code()

        ok, exhausted = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [await ask_as("alice"), await ask_as("alice"), await ask_as("bob")] == [ok, exhausted, ok]
        assert await ask_as("alice", **{"x-caller": "carol"}) == exhausted
        await eventually(lambda: len(calls_logged(envoy, "GetModel")) == 4)
        assert [(line["grpc_status"], "alice" in line["caller"]) for line in calls_logged(envoy, "GetModel")] == [
            ("OK", True),
            ("RESOURCE_EXHAUSTED", True),
            ("OK", False),
            ("RESOURCE_EXHAUSTED", True),
        ]


async def test_without_client_certificates_envoy_sends_the_caller_s_address(balanced: Balanced) -> None:
    await asyncio.to_thread(ask, balanced.envoy.address, f"{SERVICE}/GetModel", {}, **{"x-caller": "somebody"})
    await eventually(lambda: bool(calls_logged(balanced.envoy, "GetModel")))
    assert {line["caller"] for line in calls_logged(balanced.envoy, "GetModel")} == {"127.0.0.1"}


async def test_prometheus_reads_statistics_and_nothing_else_of_the_admin_interface(balanced: Balanced) -> None:
    status, text = await asyncio.to_thread(ask, balanced.envoy.http_address, "/metrics")
    assert status == 200
    assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="preprocessor"}' in text
    for path, body in (("/stats", None), ("/config_dump", None), ("/quitquitquit", {}), ("/metrics", {})):
        assert (await asyncio.to_thread(ask, balanced.envoy.http_address, path, body))[0] == 404, path


async def test_replicas_that_drain_or_die_lose_only_started_responses(balanced: Balanced) -> None:
    """One is stopped and another killed during calls, while more calls arrive."""
    drained, killed, left = balanced.replicas
    answers: list[BegunAnswer] = []
    begun = [0, 0, 0]
    while not all(begun):  # Envoy draws by lot which of them it compares: six calls may well pass one by
        answers.append(BegunAnswer(balanced.channel, LARGE_CLIP))
        await answers[-1].begin()
        begun = await balanced.all_in_flight(len(answers))
    uploads = [HeldUpload(balanced.channel, PHOTO) for _ in range(24)]
    await asyncio.gather(*(upload.begin() for upload in uploads))
    held = await balanced.all_in_flight(len(answers) + len(uploads))
    assert all(now > then for now, then in zip(held, begun, strict=True)), (begun, held)

    drained.terminate()
    digests = set(await asyncio.gather(*(prepare(balanced.channel, PHOTO) for _ in range(12))))
    killed.kill()
    digests |= set(await asyncio.gather(*(prepare(balanced.channel, PHOTO) for _ in range(12))))
    # Media that met the two find the third at once.
    each = [((MEDIA_DIGEST, str(number)),) for number in range(12)]
    digests |= set(await asyncio.gather(*(prepare(balanced.channel, PHOTO, metadata) for metadata in each)))
    assert len(digests) == 1

    assert len(set(await asyncio.gather(*(upload.finish() for upload in uploads)))) == 1
    ends = await asyncio.gather(*(answer.finish() for answer in answers), return_exceptions=True)
    broken = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert len(broken) == begun[1], ends
    # Envoy ends them with RST_STREAM, which gRPC makes INTERNAL: an error, and never an answer that is merely short.
    assert {error.code() for error in broken} <= {grpc.StatusCode.INTERNAL}
    whole = [end for end in ends if isinstance(end, str)]
    assert (len(whole), len(set(whole))) == (len(answers) - len(broken), 1), ends

    assert await drained.exit_status() == 0
    await balanced.envoy.until_healthy({left.port})
    assert await prepare(balanced.channel, PHOTO) in digests

    async def is_idle() -> bool:
        return await left.metric("preprocessor_requests_in_flight") == 0

    await eventually(is_idle)  # a call ends just after its caller has its answer

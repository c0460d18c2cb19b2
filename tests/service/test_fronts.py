"""Fronts: what callers see through them, what they share, and what happens when one ends.

`make test-fronts` runs all other tests of this folder through fronts, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preprocessor.client import PrepareResult
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import AccessSettings, SettingError, WireSettings
from preprocessor.models.family import Model
from preprocessor.service import quotas
from preprocessor.service.fronts.frames import Body
from preprocessor.service.fronts.process import FrontProcess
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.engine.certificates import Authority
from tests.media import moving_shapes_clip, photo
from tests.service.access.conftest import SERVICE, ask, refusal, replaced, towards_service, with_tls
from tests.service.conftest import ONE_CALL, Caller, chat, image, in_flight, salted, serving, video
from tests.service.refusals import refusal_of
from tests.waiting import GROWING_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=4, width=374, height=374)
LARGE = chat("What happens?", video("clip", CLIP, sampling=pb.Sampling(fps=8)))
MANY = 64
OWN_CONNECTION = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))


@pytest_asyncio.fixture(scope="module")
async def fronted(model: Model) -> AsyncIterator[Caller]:
    """A server with two fronts; tests must not change its state."""
    async with serving(model, front_count=2) as one:
        yield one
        assert (await one.samples())["preprocessor_front_restarts_total",] == 0


@asynccontextmanager
async def one_upload_through_each(
    caller: Caller,
) -> AsyncIterator[dict[FrontProcess, grpc.aio.StreamStreamCall[Any, Any]]]:
    """An open call through each front, whose upload has begun; connections are opened until each has one."""
    assert caller.server.fronts is not None
    async with contextlib.AsyncExitStack() as channels:
        found: dict[FrontProcess, grpc.aio.StreamStreamCall[Any, Any]] = {}
        for _ in range(MANY):
            before = {front: front.open_count for front in caller.server.fronts.running}
            channel = grpc.aio.insecure_channel(caller.server.address, options=OWN_CONNECTION)
            await channels.enter_async_context(channel)
            call = pb_grpc.PreprocessorStub(channel).Prepare()
            await call.write(pb.PrepareRequest(spec=chat(image("photo"))))
            await eventually(lambda: sum(front.open_count for front in before) > sum(before.values()))  # noqa: B023
            (front,) = (front for front, count in before.items() if front.open_count > count)
            if front in found:
                call.cancel()
                await eventually(lambda: front.open_count == before[front])  # noqa: B023
            else:
                found[front] = call
            if len(found) == len(before):
                yield found
                return
        raise AssertionError("all connections go to the same front")


async def prepared(caller: Caller, spec: pb.PrepareSpec, **files: bytes) -> PrepareResult:
    return await caller.prepare(spec, files)


def assert_equal(found: PrepareResult, expected: PrepareResult) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor, err_msg=name)


# -- what callers see --------------------------------------------------------------------------------------------------


async def test_tensors_are_the_same_as_without_fronts(fronted: Caller, caller: Caller) -> None:
    for spec in (
        LARGE,
        chat("Look:", image("photo", photo(333, 222)), "and", video("clip", CLIP)),
        chat(image("photo", photo(640, 480)), pixel_form=pb.PIXEL_FORM_BF16),
        chat("word " * 60_000),  # positions too large for the header, in memory of the service alone
    ):
        expected = await prepared(caller, spec)
        assert_equal(await prepared(fronted, spec), expected)
        assert_equal(await prepared(fronted, spec), expected)  # its pixels from the cache


async def test_rows_are_read_from_shared_memory_by_the_front(fronted: Caller) -> None:
    sent_bytes = []
    for front in fronted.server.fronts.running:  # type: ignore[union-attr]
        protocol = front._connection.protocol
        send = protocol.send

        def counted(kind: Any, call_id: int = 0, body: Body = b"", send: Any = send) -> None:
            sent_bytes.append(len(body))
            send(kind, call_id, body)

        front._connection.send = counted
    result = await prepared(fronted, salted(LARGE, 1))
    assert result.tensors["pixel_patches"].nbytes > 4 << 20
    assert 0 < sum(sent_bytes) < 1 << 20


async def test_an_upload_and_its_refusal_pass(fronted: Caller, caller: Caller) -> None:
    data = photo(640, 480)
    assert_equal(
        await prepared(fronted, chat(image("photo")), photo=data),
        await prepared(caller, chat(image("photo")), photo=data),
    )
    found, expected = [await one.refusal(chat(image("photo", data[:100]))) for one in (fronted, caller)]
    assert (found.code, found.reason, found.message) == (expected.code, expected.reason, expected.message)


async def test_an_unknown_method_is_unimplemented(fronted: Caller, caller: Caller) -> None:
    endings = []
    for one in (fronted, caller):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            method: Any = one.channel.unary_unary("/preprocessor.v1.Preprocessor/Nothing")
            await method(b"")
        endings.append((caught.value.code(), caught.value.details()))
    assert endings[0] == endings[1]
    assert endings[0][0] is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_checked_and_watched(model: Model) -> None:
    async with serving(model, front_count=2, is_in_process=True) as caller:
        stub = health_pb2_grpc.HealthStub(caller.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await caller.server.health.drain()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_a_caller_that_leaves_releases_everything(fronted: Caller) -> None:
    pool = fronted.server.pool
    for number in range(3):
        call = fronted.stub.Prepare(iter([pb.PrepareRequest(spec=salted(LARGE, 100 + number))]))
        for _ in range(number + 1):  # after the header, or between rows
            await call.read()
        call.cancel()
    await eventually(lambda: in_flight(fronted) == 0 and pool.pending_count == 0 and pool.used_bytes == 0)


async def test_a_caller_that_reads_no_rows_is_ended_with_the_reason(model: Model) -> None:
    async with serving(model, front_count=2, wire=WireSettings(answer_idle_seconds=0.3)) as caller:
        call: Any = caller.stub.Prepare(iter([pb.PrepareRequest(spec=LARGE)]))
        assert (await call.read()).WhichOneof("message") == "header"
        await eventually(lambda: in_flight(caller) == 0 and caller.server.pool.used_bytes == 0)
        found = await refusal_of(call)
        assert (found.code, found.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ANSWER_IDLE")
        assert (await caller.samples())["preprocessor_front_restarts_total",] == 0


async def test_the_service_s_deadline_ends_a_call_whose_front_waits_for_the_caller(model: Model) -> None:
    for seconds in GROWING_SECONDS:
        wire = WireSettings(max_timeout_seconds=seconds)
        async with serving(model, front_count=2, wire=wire) as caller:
            call: Any = caller.stub.Prepare(iter([pb.PrepareRequest(spec=LARGE)]))
            first = None
            with contextlib.suppress(grpc.aio.AioRpcError):  # the deadline may have passed before there were rows
                first = [(await call.read()).WhichOneof("message") for _ in range(2)]
            await eventually(lambda: in_flight(caller) == 0 and caller.server.pool.used_bytes == 0)
            found = await refusal_of(call)
            assert (found.code, found.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
            assert (await caller.samples())["preprocessor_front_restarts_total",] == 0
            if first == ["header", "rows"]:
                return
    raise AssertionError("no rows were sent within any of these times")


# -- what they share ---------------------------------------------------------------------------------------------------


async def test_a_caller_s_quota_holds_over_all_fronts(model: Model) -> None:
    access = AccessSettings(max_calls_a_caller=2)
    async with serving(model, front_count=2, is_in_process=True, access=access) as caller:
        async with one_upload_through_each(caller) as calls:
            found = await refusal_of(caller.stub.GetModel(pb.GetModelRequest()))
            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
            for call in calls.values():
                call.cancel()
        await eventually(lambda: caller.server.auth_interceptor.open_count == 0)
        assert (await caller.stub.GetModel(pb.GetModelRequest())).name == "qwen3-vl"
        samples = await caller.samples()
        assert samples["preprocessor_requests_total", "RESOURCE_EXHAUSTED", "GetModel"] == 1
        assert samples["preprocessor_requests_total", "OK", "GetModel"] == 1


async def test_a_caller_is_who_its_certificate_says_through_every_front(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, "authority")
    files = replaced(tmp_path, authority.sign(SERVICE))
    monkeypatch.setattr(quotas, "BURST_SECONDS", 3 / ONE_CALL)
    access = with_tls(files, tls_client_root=str(authority.certificate), max_calls_per_second=ONE_CALL)
    async with serving(model, front_count=2, is_in_process=True, access=access) as caller:
        first, second = (towards_service(authority, authority.sign(f"{name}.test")) for name in ("first", "second"))
        for _ in range(3):
            await ask(caller, first)
        assert (await refusal(caller, first)).reason == "CALL_RATE_EXCEEDED"
        await ask(caller, second)
        assert (await refusal(caller, towards_service(authority))).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow  # `make test-fronts` has another one
async def test_fronts_take_a_renewed_certificate(model: Model, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    files = replaced(tmp_path, authority.sign(SERVICE))
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "following authority")
    async with serving(model, front_count=2, is_in_process=True, access=with_tls(files)) as caller:
        await ask(caller, towards_service(authority))
        replaced(tmp_path, following.sign(SERVICE))
        for _ in range(4):
            await ask(caller, towards_service(following))
            assert (await refusal(caller, towards_service(authority))).code is grpc.StatusCode.UNAVAILABLE


async def test_an_address_in_use_is_refused_although_fronts_share_theirs(fronted: Caller, model: Model) -> None:
    with pytest.raises(SettingError) as caught:
        async with serving(model, front_count=2, is_in_process=True, address=fronted.server.address):
            pass
    assert caught.value.option == "--address"


# -- how they end ------------------------------------------------------------------------------------------------------


async def test_a_killed_front_costs_its_own_calls_alone_and_is_replaced(model: Model) -> None:
    async with serving(model, front_count=2) as caller:
        fronts = caller.server.fronts
        assert fronts is not None
        async with one_upload_through_each(caller) as calls:
            (killed, its_call), (other, other_call) = calls.items()
            os.kill(killed.process_id, signal.SIGKILL)
            assert (await refusal_of(its_call)).code is grpc.StatusCode.UNAVAILABLE
            await eventually(lambda: in_flight(caller) == 1)
            await other_call.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=photo(90, 60), last=True)))
            kinds = [response.WhichOneof("message") async for response in other_call]
            assert kinds[-1] == "report"
        await eventually(lambda: len(fronts.running) == 2 and killed not in fronts.running)
        assert other in fronts.running
        async with one_upload_through_each(caller) as calls:
            assert killed not in calls
        await eventually(lambda: in_flight(caller) == 0)
        assert (await caller.samples())["preprocessor_front_restarts_total",] == 1


async def test_rows_being_sent_are_released_when_their_front_is_killed(model: Model) -> None:
    async with serving(model, front_count=2) as caller:
        call: Any = caller.stub.Prepare(iter([pb.PrepareRequest(spec=LARGE)]))
        assert (await call.read()).WhichOneof("message") == "header"
        assert (await call.read()).WhichOneof("message") == "rows"
        (front,) = (front for front in caller.server.fronts.running if front.open_count)  # type: ignore[union-attr]
        os.kill(front.process_id, signal.SIGKILL)
        await eventually(lambda: in_flight(caller) == 0 and caller.server.pool.used_bytes == 0)
        assert (await refusal_of(call)).code is grpc.StatusCode.UNAVAILABLE


async def test_without_any_front_the_replica_is_unready_until_one_runs(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(model, front_count=2, is_in_process=True) as caller:
        fronts = caller.server.fronts
        assert fronts is not None
        may_start, start = asyncio.Event(), FrontProcess.start

        async def start_when_it_may(front: FrontProcess) -> None:
            await may_start.wait()
            await start(front)

        monkeypatch.setattr(FrontProcess, "start", start_when_it_may)
        for front in fronts.running:
            front.kill()
        await eventually(lambda: not fronts.running)
        assert await caller.get("/readyz") == (503, "no front is running\n")
        may_start.set()
        await eventually(lambda: bool(fronts.running))
        assert (await caller.get("/readyz"))[0] == 200


async def test_a_stop_lets_calls_through_fronts_end_and_takes_the_fronts_with_it(model: Model) -> None:
    async with serving(model, front_count=2) as caller:
        assert caller.server.fronts is not None
        fronts = caller.server.fronts.running
        async with one_upload_through_each(caller) as calls:
            stopping = asyncio.create_task(caller.server.__aexit__(None, None, None))
            await eventually(lambda: bool(caller.server.health.trouble))
            for call in calls.values():
                await call.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=photo(90, 60), last=True)))
                assert [response.WhichOneof("message") async for response in call][-1] == "report"
            await stopping
        assert not any(psutil.pid_exists(front.process_id) for front in fronts)


async def test_nothing_is_left_open_by_calls_through_fronts(model: Model) -> None:
    async with serving(model, front_count=2) as caller:
        assert caller.server.fronts is not None
        unit_bytes = caller.server.pool.arena.unit_bytes
        fronts = [psutil.Process(front.process_id) for front in caller.server.fronts.running]
        before = [process.num_fds() for process in fronts]
        first = await prepared(caller, LARGE)
        service = psutil.Process()
        service_count = service.num_fds()
        for _ in range(20):
            await prepared(caller, LARGE)  # from the cache, so always out of the same files
        chunk_count = first.tensors["pixel_patches"].nbytes // unit_bytes + 2  # each stays open once
        await eventually(lambda: service.num_fds() <= service_count + 2)
        for process, count in zip(fronts, before, strict=True):
            await eventually(lambda: process.num_fds() <= count + chunk_count + 4)  # noqa: B023

"""W3C trace context without OpenTelemetry: whose trace a call belongs to, and what goes on to the engine."""

from __future__ import annotations

import pytest

from preprocessor.config import SettingError, TraceSettings
from preprocessor.service.tracing import Traces

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("traceparent", "trace_id", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE, True),
        (f"00-{TRACE}-{SPAN}-00", TRACE, False),
        (f"00-{TRACE}-{SPAN}-ff", TRACE, True),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", TRACE, True),
        (f"ff-{TRACE}-{SPAN}-01", "", False),
        (f"00-{'0' * 32}-{SPAN}-01", "", False),
        (f"00-{TRACE}-{'0' * 16}-01", "", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", "", False),
        (f"00-{TRACE}-{SPAN}", "", False),
        ("a line\nof a log", "", False),
        ("", "", False),
    ],
)
def test_a_trace_is_known_by_a_well_formed_parent_alone(traceparent: str, trace_id: str, is_sampled: bool) -> None:
    trace = Traces().begin("Prepare", (("traceparent", traceparent),), "request")
    assert trace.trace_id == trace_id
    assert trace.exemplar == ({"trace_id": trace_id} if is_sampled else None)


def test_the_context_goes_on_and_nothing_else_does() -> None:
    context = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "vendor=1"))
    others = (("authorization", "Bearer secret"), ("traceparent-bin", b"\x00"))
    assert Traces().begin("Generate", (*others, *context), "request").start_engine_request() == context


@pytest.mark.parametrize(
    "wrong",
    [{"endpoint": "collector:4317"}, {"sample_ratio": 1.5}, {"sample_ratio": -0.1}, {"sample_ratio": float("nan")}],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="--trace-"):
        TraceSettings(**wrong)  # type: ignore[arg-type]

"""Sampling parameters that an engine may lack: what reaches the engine, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from engine_client import FEATURE_TENSORS, Endpoints, EngineFailed, EngineRequest, EngineStep, SamplingParameters
from engine_client.testing import FakeEngine
from preprocessor.__main__ import main
from preprocessor.client import AsyncAnswer, AsyncClient, CallFailed, InvalidRequest, Parameters, Prompt, chat, image
from preprocessor.client.requests import generation_parameters
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo
from tests.service.conftest import Caller, serving
from tests.service.refusals import refusal_of

HI = chat("hi")
SET: Parameters = {
    "temperature": 0.5,
    "min_p": 0.25,
    "presence_penalty": -0.5,
    "frequency_penalty": 1.5,
    "repetition_penalty": 1.25,
    "logprobs": 2,
    "answer_count": 3,
    "json_schema": {"type": "object"},
}


async def generate(caller: Caller, prompt: Prompt = HI, **parameters: object) -> AsyncAnswer:
    async with (
        AsyncClient(caller.server.address) as client,
        client.generate(prompt, **parameters) as answer,  # type: ignore[arg-type]
    ):
        await answer.read()
    return answer


async def test_the_engine_gets_what_the_caller_sets(model: Model) -> None:
    engine = FakeEngine([11])
    async with serving(model, engine) as caller:
        await generate(caller, **SET)
        await generate(caller)
    first, second = (request.sampling for request in engine.requests)
    assert (first.min_p, first.presence_penalty, first.frequency_penalty) == (0.25, -0.5, 1.5)
    assert (first.repetition_penalty, first.logprobs, first.answer_count) == (1.25, 2, 3)
    assert (first.json_schema, first.regex, first.grammar) == ('{"type": "object"}', "", "")
    assert second == SamplingParameters(stop_token_ids=second.stop_token_ids)


async def test_each_of_several_answers_has_its_own_text_stop_and_finish_reason(model: Model) -> None:
    letters = {letter: model.tokenizer.encode(letter)[0] for letter in "abcdef"}
    engine = FakeEngine(list(letters.values()))
    async with serving(model, engine) as caller:
        answer = await generate(
            caller, answer_count=3, temperature=1, stop_strings=["e"], stop_token_ids=[letters["d"]], max_tokens=3
        )
        samples = await caller.samples()
    # The fake's answer i begins with its i-th token.
    assert [one.text for one in answer.answers] == ["abc", "bcd", "cd"]
    assert [one.end.finish_reason for one in answer.answers] == [
        *(pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP, pb.FINISH_REASON_STOP)
    ]
    assert [one.end.token_count for one in answer.answers] == [3, 3, 2]
    assert answer.text == "abc"
    assert answer.completion.finish_reason == pb.FINISH_REASON_LENGTH
    assert answer.completion.completion_token_count == 8
    assert samples["preprocessor_answer_tokens_total",] == 8


async def test_an_answer_that_its_stop_string_ends_goes_no_further_and_the_others_do(model: Model) -> None:
    engine = FakeEngine([model.tokenizer.encode(letter)[0] for letter in "abcdef"])
    async with serving(model, engine) as caller:
        answer = await generate(caller, answer_count=2, temperature=1, stop_strings=["a"])
        assert [one.text for one in answer.answers] == ["", "bcdef"]
        assert [one.end.token_count for one in answer.answers] == [1, 5]
        answer = await generate(caller, answer_count=2, temperature=1, stop_strings=["b"])
        assert [one.text for one in answer.answers] == ["a", ""]
    assert engine.cancelled_count == 2  # the engine would have gone on with what nobody reads


async def test_log_probabilities_come_with_their_tokens(model: Model) -> None:
    async with serving(model, FakeEngine([11, 12])) as caller:
        answer = await generate(caller, logprobs=2)
        alone = await generate(caller, logprobs=0)
        without = await generate(caller)
    assert [(one.logprob, [(top.token_id, top.logprob) for top in one.top]) for one in answer.logprobs] == [
        (-11, [(11, -11), (12, -12)]),
        (-12, [(12, -12), (13, -13)]),
    ]
    assert [(one.logprob, list(one.top)) for one in alone.logprobs] == [(-11, []), (-12, [])]
    assert without.logprobs == []


async def test_log_probabilities_after_a_stop_string_are_not_sent(model: Model) -> None:
    ids = [model.tokenizer.encode(letter)[0] for letter in "abc"]

    class AtOnce(FakeEngine):
        def _steps(self, request: EngineRequest) -> list[EngineStep]:
            steps = super()._steps(request)
            logprobs = tuple(one for step in steps for one in step.logprobs)
            return [EngineStep(tuple(ids), steps[-1].finish_reason, 0, logprobs)]

    async with serving(model, AtOnce(ids)) as caller:
        answer = await generate(caller, logprobs=0, stop_strings=["b"])
    assert answer.token_ids == ids[:2]
    assert [one.logprob for one in answer.logprobs] == [-ids[0], -ids[1]]


@pytest.mark.parametrize("name", FEATURE_TENSORS)
async def test_what_the_engine_lacks_is_refused_by_name_before_any_file_is_read(model: Model, name: str) -> None:
    others = FEATURE_TENSORS.keys() - {name}
    engine = FakeEngine([11], features=others)
    values: dict[str, object] = dict(SET) | {"regex": "a+", "grammar": 'root ::= "a"'}
    given = {"temperature": 1.0, name: values[name]}
    async with serving(model, engine) as caller:
        with pytest.raises(CallFailed) as caught:
            await generate(caller, chat([{"role": "user", "content": [image(photo()[:99])]}]), **given)
        await generate(caller)  # the default of what it lacks is no trouble
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_PARAMETER")
    assert error.fields == (f"parameters.{name}",)
    assert f"the engine has no {name}" in error.message
    assert len(engine.requests) == 1


async def test_several_engines_have_what_all_have_and_the_model_tells(model: Model) -> None:
    engines = Endpoints(
        {"a": FakeEngine([11], features=["min_p", "regex"]), "b": FakeEngine([11], features=["regex", "logprobs"])}
    )
    async with serving(model, engines) as caller:
        assert (await caller.stub.GetModel(pb.GetModelRequest())).generation_features == ["regex"]
        await generate(caller, regex="a")
        with pytest.raises(CallFailed, match="no min_p"):
            await generate(caller, min_p=0.5)


async def test_the_model_is_told_while_no_engine_answers(model: Model) -> None:
    async with serving(model, FakeEngine(is_available=False)) as caller:
        assert (await caller.stub.GetModel(pb.GetModelRequest())).generation_features == []
        with pytest.raises(CallFailed) as caught:
            await generate(caller, min_p=0.5)
    assert caught.value.reason == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        (pb.GenerationParameters(min_p=2), "min_p"),
        (pb.GenerationParameters(presence_penalty=3), "presence_penalty"),
        (pb.GenerationParameters(frequency_penalty=float("nan")), "frequency_penalty"),
        (pb.GenerationParameters(repetition_penalty=0), "repetition_penalty"),
        (pb.GenerationParameters(logprobs=21), "logprobs"),
        (pb.GenerationParameters(temperature=1, answer_count=129), "answer_count"),
        (pb.GenerationParameters(answer_count=2), "answer_count"),
        (pb.GenerationParameters(regex=""), "regex"),
        (pb.GenerationParameters(grammar="x" * (65 << 10)), "grammar"),
    ],
)
async def test_a_value_that_is_not_accepted_is_named(
    model: Model, parameters: pb.GenerationParameters, field: str
) -> None:
    error = await refusal(model, parameters)
    assert (error.reason, error.fields) == ("INVALID_GENERATION_PARAMETERS", (f"parameters.{field}",))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "INVALID_JSON"),
        ("[]", "INVALID_JSON"),
        ('{"a":1,"a":2}', "DUPLICATE_JSON_KEY"),
        ("[" * 999, "JSON_TOO_DEEP"),
    ],
)
async def test_a_schema_that_is_no_json_object_is_refused(model: Model, schema: str, reason: str) -> None:
    error = await refusal(model, pb.GenerationParameters(json_schema=schema))
    assert (error.reason, error.fields) == (reason, ("parameters.json_schema",))


async def refusal(model: Model, parameters: pb.GenerationParameters) -> CallFailed:
    async with serving(model, FakeEngine([11])) as caller:
        spec = pb.GenerateSpec(prompt=HI.spec, parameters=parameters)
        return await refusal_of(caller.stub.Generate(iter([pb.GenerateRequest(spec=spec)])))


async def test_an_engine_that_counts_answers_wrongly_has_failed(model: Model) -> None:
    class Confused(FakeEngine):
        def _steps(self, request: EngineRequest) -> list[EngineStep]:
            return [EngineStep((11,), None, 1)]

    async with serving(model, Confused()) as caller:
        with pytest.raises(CallFailed) as caught:
            await generate(caller)
    assert caught.value.reason == EngineFailed.reason


def test_the_client_refuses_two_constraints_and_a_number_that_json_has_not() -> None:
    with pytest.raises(InvalidRequest, match="grammar and regex exclude each other"):
        generation_parameters({"regex": "a", "grammar": "b"})
    with pytest.raises(InvalidRequest, match="finite"):
        generation_parameters({"json_schema": {"maximum": float("inf")}})


# -- the command line --------------------------------------------------------------------------------------------------


async def run(caller: Caller, *options: str) -> int:
    arguments = ["generate", "--address", caller.server.address, "--text", "Hi", *options]
    return await asyncio.to_thread(main, arguments)


async def test_the_command_line_sets_them_and_prints_every_answer(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine([model.tokenizer.encode(letter)[0] for letter in "ab"])
    (tmp_path / "schema.json").write_text('{"type": "string"}')
    several = ["--answers", "2", "--temperature", "1", "--min-p", "0.5", "--logprobs", "1"]
    penalties = ["--presence-penalty", "1", "--frequency-penalty", "-1", "--repetition-penalty", "2"]
    async with serving(model, engine) as caller:
        assert await run(caller, *several, *penalties, "--json-schema", str(tmp_path / "schema.json"), "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert await run(caller, "--regex", "ab", "--answers", "2", "--temperature", "1") == 0
        shown = capsys.readouterr().out
    first, second = (request.sampling for request in engine.requests)
    assert (first.answer_count, first.min_p, first.logprobs, first.json_schema) == (2, 0.5, 1, '{"type": "string"}')
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (1, -1, 2)
    assert (second.regex, second.logprobs) == ("ab", None)
    assert [one["text"] for one in told["answers"]] == ["ab", "b"]
    assert (told["text"], told["logprobs"]) == ("ab", told["answers"][0]["logprobs"])
    assert len(told["logprobs"][0]["top"]) == 1
    assert shown.startswith("ab\n\n2 tokens, finished by stop")
    assert "\nb\n\n1 tokens, finished by stop" in shown


async def test_the_command_line_says_what_the_engine_lacks(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(model, FakeEngine([11], features=[])) as caller:
        assert await run(caller, "--min-p", "0.5") == 1
    assert "UNSUPPORTED_PARAMETER: the engine has no min_p; of such parameters it has none" in capsys.readouterr().err


def test_the_command_line_refuses_two_constraints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--text", "Hi", "--regex", "a", "--grammar", "file"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_json_with_two_constraints_is_refused_as_it_is_read() -> None:
    with pytest.raises(json_format.ParseError, match="constraint"):
        json_format.ParseDict({"regex": "a", "grammar": "b"}, pb.GenerationParameters())

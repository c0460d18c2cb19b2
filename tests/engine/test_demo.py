"""`make demo`, as it is run."""

from __future__ import annotations

import dataclasses

import pytest

from deploy import demo
from deploy.demo_model.questions import demo_questions
from deploy.demo_model.story import HELD_OUT_SEEDS, Story

SEED = 424072


@pytest.mark.slow
def test_the_demo_succeeds_where_every_answer_is_right_and_fails_where_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert demo.main("triton", SEED) == 0
    assert capfd.readouterr().out.count("[right]") == 3

    def with_a_wrong_one(story: Story, seed: int) -> list[object]:
        first, *others = demo_questions(story, seed)
        return [dataclasses.replace(first, answer="A white square moves down."), *others]

    monkeypatch.setattr(demo, "demo_questions", with_a_wrong_one)
    assert demo.main("triton", SEED) == 1
    printed = capfd.readouterr().out
    assert (printed.count("[right]"), printed.count("[wrong: A white square moves down.]")) == (2, 1)
    assert f"make demo SEED={SEED}" in printed
    assert "the model's own mistake" in printed


@pytest.mark.parametrize(
    ("verdicts", "engine", "expected"),
    [
        ([True, True, True], "triton", []),
        ([True, False, True], "triton", ["model's own mistake", "other clips", "clip 7 again: make demo SEED=7"]),
        ([False] * 3, "vllm", ["model's own mistake", "other clips", "clip 7 again: make demo ENGINE=vllm SEED=7"]),
        ([None, True, True], "triton", ["no answer", "clip 7 again: make demo SEED=7"]),
        ([None, False], "triton", ["no answer", "model's own mistake", "other clips", "clip 7 again"]),
    ],
)
def test_a_user_reads_whose_mistake_it_may_be_and_how_to_ask_again(
    verdicts: list[bool | None], engine: str, expected: list[str]
) -> None:
    for line, phrase in zip(demo.explanations(verdicts, engine, 7), expected, strict=True):
        assert phrase in line


@pytest.mark.parametrize("seed", [-1, HELD_OUT_SEEDS, 10**30])
def test_a_clip_that_the_model_may_have_been_trained_on_is_refused(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = demo.build_parser()
    assert parser.parse_args(["--seed", str(HELD_OUT_SEEDS - 1)]).seed == HELD_OUT_SEEDS - 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", str(seed)])
    assert f"{seed} is not accepted; give a number from 0 to 999999" in capsys.readouterr().err

"""The clips that the demo's model is trained on, what is said of them, and the words that it knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from deploy.demo_model import samples
from deploy.demo_model.batches import collate
from deploy.demo_model.questions import KINDS, demo_questions, describe
from deploy.demo_model.story import COLORS, DIRECTIONS, MOST_SECONDS, SHAPES, make_story
from tests.engine import seeing

SEEDS = range(200)


def test_a_story_is_told_in_its_order_and_backwards() -> None:
    assert describe(seeing.STORY) == seeing.SAID
    assert describe(seeing.STORY.backwards()) == seeing.BACKWARDS


def test_a_story_backwards_shows_at_each_moment_what_it_shows_as_long_before_its_end() -> None:
    background = seeing.STORY.background(96)
    backwards = seeing.STORY.backwards()
    for seconds in np.arange(0.25, seeing.STORY.seconds, 0.5).tolist():
        shown = seeing.STORY.draw(seconds, background).astype(int)
        mirrored = backwards.draw(seeing.STORY.seconds - seconds, background)
        assert np.abs(shown - mirrored).mean() < 0.2  # a sixteenth of a pixel off


def test_colors_are_unique_in_a_story_and_its_times_have_one_digit() -> None:
    for told in map(make_story, SEEDS):
        assert len({event.color for event in told.events}) == len(told.events)
        assert told.seconds <= MOST_SECONDS


def test_every_kind_of_question_is_asked_and_three_in_the_demo() -> None:
    asked = [samples.questions_about(make_story(seed), np.random.default_rng(seed)) for seed in SEEDS]
    assert all({question.kind for question in questions} == set(KINDS) for questions in asked)
    assert {len(demo_questions(make_story(seed), seed)) for seed in SEEDS} == {3}


def test_training_writes_the_prompts_and_pixels_that_the_pipeline_makes_of_a_clip() -> None:
    told = make_story(1)
    sample = samples.held_out_sample(1)
    assert sample.prefix_ids == samples.expected_prefix(1)
    drawn = samples.patch_rows([told.draw(time, told.background(96)) for time in samples.sampled_times(told).tolist()])
    assert sample.rows.shape == drawn.shape
    assert np.abs(sample.rows.astype(int) - drawn).mean() < 4  # an encoder's loss


def test_training_hints_at_the_shape_and_the_direction_of_each_color_that_a_question_names() -> None:
    drawn = [samples.drawn_sample(seed) for seed in range(20)]
    tokenizer = samples.model().tokenizer
    batch = collate(drawn, np.arange(len(tokenizer)))
    names, expected = [], []
    for seed, sample in enumerate(drawn):
        events = {event.color: event for event in make_story(seed).events}
        named = [color for question in sample.questions for color in COLORS if color in question.text]
        names += [f" {color}" for color in named]
        expected += [
            [1 + SHAPES.index(events[color].shape), 1 + list(DIRECTIONS).index(events[color].direction)]
            for color in named
        ]
    tokens = torch.masked_select(batch.ids, batch.named)
    assert [tokenizer.decode([token]) for token in tokens.tolist()] == names
    assert batch.meant.tolist() == expected


@pytest.mark.slow
def test_training_that_was_stopped_after_a_stage_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.demo_model import train  # not above: it changes how torch registers operators for the process

    stages = (train.Stage(2, 2e-3, 1e-3, weighs_tokens=True), train.Stage(2, 1e-3, 0))
    monkeypatch.setattr(train, "WATCHED_SEEDS", range(1))
    monkeypatch.setattr(train, "STAGES", stages)
    train.train(0, tmp_path / "whole")
    monkeypatch.setattr(train, "STAGES", stages[:1])
    train.train(0, tmp_path / "stopped")
    first = load_file(tmp_path / "stopped")
    monkeypatch.setattr(train, "STAGES", stages)
    train.train(1, tmp_path / "stopped")
    whole, stopped = load_file(tmp_path / "whole"), load_file(tmp_path / "stopped")
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)
    assert any(not np.array_equal(first[name], stopped[name]) for name in whole)


def test_the_weights_have_a_row_for_every_token_of_questions_and_answers() -> None:
    weights = Path(samples.__file__).with_name("weights.safetensors")
    assert load_file(weights)["token_ids"].tolist() == samples.vocabulary()

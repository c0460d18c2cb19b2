"""Questions about a story, in plain English, and their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.demo_model.story import Story

KINDS = ("describe", "direction", "shape", "first", "last", "count", "time")
"""Of questions that the model is taught and asked."""
_NUMBERS = ("zero", "one", "two", "three")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the one right answer.

    Attributes:
        kind: One of `KINDS`.
    """

    kind: str
    text: str
    answer: str


def ask(story: Story, kind: str, random: np.random.Generator) -> Question:
    """A question of that kind about that story.

    Raises:
        ValueError: The kind is none of `KINDS`.
    """
    events = story.events
    event = events[int(random.integers(len(events)))]
    match kind:
        case "describe":
            return _any_of(
                random, kind, ["What happens?", "What happens in the clip?", "Describe the clip."], describe(story)
            )
        case "direction":
            texts = [f"Which way does the {event.name} move?", f"Where does the {event.name} go?"]
            return _any_of(random, kind, texts, f"{event.direction.capitalize()}.")
        case "shape":
            return _any_of(
                random, kind, [f"Which shape is {event.color}?", f"What is {event.color}?"], f"The {event.shape}."
            )
        case "first":
            return Question(kind, "What moves first?", f"A {events[0].name}.")
        case "last":
            return Question(kind, "What moves last?", f"A {events[-1].name}.")
        case "count":
            return _any_of(
                random,
                kind,
                ["How many shapes move?", "How many shapes are there?"],
                f"{_NUMBERS[len(events)].capitalize()}.",
            )
        case "time":
            which, asked = [("first", events[0]), ("last", events[-1])][int(random.integers(2))]
            return Question(kind, f"When does the {which} shape appear?", f"{asked.start_seconds}.0 seconds.")
    raise ValueError(f"kind of question: {kind!r}, not one of {', '.join(KINDS)}")


def describe(story: Story) -> str:
    """All that happens, in order."""
    return (
        ", then ".join(
            f"{'A' if index == 0 else 'a'} {event.name} moves {event.direction}"
            for index, event in enumerate(story.events)
        )
        + "."
    )


def _any_of(random: np.random.Generator, kind: str, texts: list[str], answer: str) -> Question:
    return Question(kind, texts[int(random.integers(len(texts)))], answer)


def demo_questions(story: Story, seed: int) -> list[Question]:
    """Three of different kinds: what happens, and two more."""
    random = np.random.default_rng((seed, 4))
    others = [kind for kind in KINDS if kind != "describe"]
    return [ask(story, kind, random) for kind in ("describe", *random.permutation(others)[:2].tolist())]

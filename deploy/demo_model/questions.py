"""Questions about a story, in plain English, and their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.demo_model.story import COLORS, SHAPES, Story

KINDS = ("describe", "direction", "shape", "first", "last", "count", "time")
"""Of questions that the model answers."""
TAUGHT_KINDS = ("describe", "direction", "color", "shape", "first", "last", "after", "order", "count", "exists", "time")
"""Of questions in the first stages of its training, of which it does not learn all."""
_NUMBERS = ("zero", "one", "two", "three")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the one right answer.

    Attributes:
        kind: One of `TAUGHT_KINDS`.
    """

    kind: str
    text: str
    answer: str


def ask(story: Story, kind: str, random: np.random.Generator) -> Question | None:
    """A question of that kind about that story; None where the story has no clear answer to one."""
    events = story.events
    event = events[int(random.integers(len(events)))]
    shapes = [each.shape for each in events]
    other = events[int(random.integers(len(events)))]
    match kind:
        case "describe":
            return _any_of(
                random, kind, ["What happens?", "What happens in the clip?", "Describe the clip."], describe(story)
            )
        case "direction":
            texts = [f"Which way does the {event.name} move?", f"Where does the {event.name} go?"]
            return _any_of(random, kind, texts, f"{event.direction.capitalize()}.")
        case "color" if shapes.count(event.shape) == 1:
            return Question(kind, f"What color is the {event.shape}?", f"{event.color.capitalize()}.")
        case "shape":
            return _any_of(
                random, kind, [f"Which shape is {event.color}?", f"What is {event.color}?"], f"The {event.shape}."
            )
        case "first":
            return Question(kind, "What moves first?", f"A {events[0].name}.")
        case "last":
            return Question(kind, "What moves last?", f"A {events[-1].name}.")
        case "after":
            place = events.index(event) + 1
            answer = f"A {events[place].name}." if place < len(events) else "Nothing."
            return Question(kind, f"What comes after the {event.name}?", answer)
        case "order" if event != other:
            first = min(event, other, key=lambda each: each.start_seconds)
            return Question(kind, f"Which comes first, the {event.name} or the {other.name}?", f"The {first.name}.")
        case "count":
            return _any_of(
                random,
                kind,
                ["How many shapes move?", "How many shapes are there?"],
                f"{_NUMBERS[len(events)].capitalize()}.",
            )
        case "exists":
            name = event.name if random.random() < 0.5 else f"{random.choice(list(COLORS))} {random.choice(SHAPES)}"
            is_there = any(each.name == name for each in events)
            return Question(kind, f"Is there a {name}?", "Yes." if is_there else "No.")
        case "time":
            which, asked = [("first", events[0]), ("last", events[-1])][int(random.integers(2))]
            return Question(kind, f"When does the {which} shape appear?", f"{asked.start_seconds}.0 seconds.")
    return None


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
    asked = (ask(story, kind, random) for kind in ("describe", *random.permutation(others).tolist()))
    return [question for question in asked if question is not None][:3]

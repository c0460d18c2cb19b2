"""Which form of text a chat template gets."""

from __future__ import annotations

import dataclasses

import pytest

from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.models.generic.prompt import needs_parts
from tests.unit.generic.cases import LIMITS, chat


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}",
        "{%- for m in messages -%}{%- for c in m.content | selectattr('type', 'equalto', 'text') -%}{%- endfor -%}{%- endfor -%}",
        "{% macro text(content) %}{% for item in content %}{{ item.text }}{% endfor %}{% endmacro %}",
    ],
)
def test_a_template_that_goes_through_parts_needs_them(template: str) -> None:
    assert needs_parts(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages if m.content %}{{ m['content'] }}{% endfor %}",
        "{{ 'for a in content' }}",
    ],
)
def test_a_template_that_prints_content_needs_a_string(template: str) -> None:
    assert not needs_parts(template)


def test_a_template_that_prints_content_gets_text_as_a_string(loaded: dict[str, GenericModel]) -> None:
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    model = dataclasses.replace(loaded["pixtral"], chat_template=template)
    prepared = prepare_generic(model, chat(), LIMITS)
    assert (
        model.tokenizer.decode(prepared.token_ids, skip_special_tokens=True) == "Be brief.;What is it?;Shapes.;Sure?;"
    )

"""The page that asks for a prompt to be shown."""

from __future__ import annotations

from importlib.resources import files
from string import Template

from preprocessor import __version__
from preprocessor.prompt_page.markup import escape, tag
from preprocessor.prompt_page.render import policy_digest

_EXAMPLE = "What happens here?"


def render_form(model_name: str, problem: str = "") -> str:
    """The whole file.

    Args:
        problem: Why the last prompt was refused.
    """
    folder = files(__package__)
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    return Template(folder.joinpath("form.html").read_text(encoding="utf-8")).substitute(
        style=style,
        style_digest=escape(policy_digest(style)),
        model=escape(model_name),
        version=escape(__version__),
        problem=tag("p", problem, class_="notes", role="alert") if problem else "",
        text=escape(_EXAMPLE),
    )

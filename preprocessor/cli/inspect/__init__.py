"""`preprocessor inspect`: the page of a prompt (`prompt_page`) as a file; `origins` is where the prompt comes from."""

from preprocessor.cli.inspect.command import run

__all__ = ["run"]

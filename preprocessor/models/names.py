"""Names of models, as far as they are of this machine.

Without torch: `serve` looks for its model before it loads anything.
"""

from __future__ import annotations

from pathlib import Path

from preprocessor.errors import ModelNotFound

BUILTIN = Path(__file__).parent / "builtin"


def builtin_names() -> list[str]:
    return sorted(path.name for path in BUILTIN.iterdir() if path.is_dir())


def kinds_of_names() -> str:
    """What a model may be named by, for errors."""
    return (
        f"give a built-in ({', '.join(builtin_names())}), a directory of configuration and tokenizer files, or a hub id"
    )


def find_here(name: str) -> Path | None:
    """The directory of a built-in, or a local directory; None where the name can only be a hub id.

    Raises:
        ModelNotFound: It is a path of this machine, and no directory.
    """
    if name in builtin_names():
        return BUILTIN / name
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise ModelNotFound(f"{name}: this is a file; {kinds_of_names()}")
    if name.startswith(("/", "./", "../", "~")):
        raise ModelNotFound(f"{name}: there is no such directory; {kinds_of_names()}")
    return None

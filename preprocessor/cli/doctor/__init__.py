"""Checks of a deployment, one by one: what `serve` would find there, and how to fix it.

A check is a function that returns a `Finding`; what it compares is handed to it, so that it can be asked about any machine.
`examine` puts them together: it is the list of all checks.
"""

from preprocessor.cli.doctor.command import run

__all__ = ["run"]

"""What `serve` would find where it is deployed, looked at one by one, each with what to do about it.

A check is a function that returns a `Finding`; what it compares is handed to it, so that it can be asked about any machine.
`examine` puts them together: it is the list of what is looked at.
"""

from preprocessor.cli.doctor.command import run

__all__ = ["run"]

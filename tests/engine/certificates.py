"""Certificates for tests, made on the spot by the `openssl` program: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS

SERVER_NAME = "engine.test"
"""What a server's certificate is for: not 127.0.0.1, as in a cluster, where names are signed and not addresses."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate with its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates that are good for a day."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._own = self._files(name)
        self.certificate = self._own.certificate
        _openssl("req", "-x509", *self._new_key(self._own), "-subj", f"/CN={name}", "-days", "1")

    def sign(self, name: str, alternative: str = "") -> Signed:
        """A certificate for a server of that name, or a client; `alternative` is another name for it than DNS:name."""
        signed = self._files(name)
        request, extensions = signed.key.with_suffix(".csr"), signed.key.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={alternative or f'DNS:{name}'}\n")
        _openssl("req", *self._new_key(signed)[:-2], "-out", request, "-subj", f"/CN={name}")
        issuer = ("-CA", self._own.certificate, "-CAkey", self._own.key, "-CAcreateserial", "-days", "1")
        _openssl("x509", "-req", "-in", request, *issuer, "-extfile", extensions, "-out", signed.certificate)
        return signed

    def _files(self, name: str) -> Signed:
        return Signed(self._directory / f"{name}.pem", self._directory / f"{name}.key")

    @staticmethod
    def _new_key(signed: Signed) -> tuple[str | Path, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")  # made in no time, unlike RSA
        return (*curve, "-nodes", "-keyout", signed.key, "-out", signed.certificate)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=PATIENCE_SECONDS)

"""Bearer tokens that identify callers, from a file that may be replaced while the service runs.

A line of the file is a caller's name and its token, or the token's SHA-256, with which the file alone gives no access:

    # the gateway: both tokens are valid during a rotation
    gateway    sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    gateway    sha256:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11e752
    batch-jobs 3T9hQx...

Tokens are compared by their digests, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping

from preprocessor.config import SettingError
from preprocessor.config.credentials import read_file, stamp_of

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 2.0
MIN_TOKEN_LENGTH = 16  # shorter ones can be guessed; `openssl rand -hex 32` makes good ones
_NAME = re.compile(r"[A-Za-z0-9._@:/-]{1,128}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class CallerTokens:
    """The callers' names by token.

    Args:
        clock: Monotonic clock, in seconds.
    Raises:
        SettingError: The file cannot be read or is invalid; the message gives the line number and never its content.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._stamp = stamp_of(path)
        self._names = _read(path)
        self._checked_at_seconds = clock()

    def name_of(self, token: str) -> str | None:
        """The name of the token's owner; None for an unknown token."""
        self._refresh()
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, name in self._names.items():  # no early exit, so that the duration does not depend on the match
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _refresh(self) -> None:
        """Read the file if it has changed; if the new one is invalid, the previous tokens stay in use."""
        now = self._clock()
        if now - self._checked_at_seconds < REFRESH_SECONDS:
            return
        self._checked_at_seconds = now
        stamp = stamp_of(self._path)
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._names = _read(self._path)
        except SettingError as error:
            logger.warning("the previous tokens stay in use: %s", error)
        else:
            logger.info("read %d tokens from %s", len(self._names), self._path)


def _read(path: str) -> Mapping[bytes, str]:
    """The owners' names by the tokens' SHA-256 digests."""
    names: dict[bytes, str] = {}
    try:
        lines = read_file("--token-file", path).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise SettingError("--token-file", path, "a file of printable ASCII") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 2 or not _NAME.fullmatch(fields[0]):
            raise SettingError(
                "--token-file", path, f"a name and a token, or a name and sha256:DIGEST, in line {number}"
            )
        name, token = fields
        digest = _DIGEST.fullmatch(token)
        if digest is None and (token.startswith("sha256:") or len(token) < MIN_TOKEN_LENGTH):
            raise SettingError(
                "--token-file",
                path,
                f"64 hexadecimal digits, or at least {MIN_TOKEN_LENGTH} characters, in line {number}",
            )
        key = bytes.fromhex(digest[1]) if digest else hashlib.sha256(token.encode()).digest()
        if names.setdefault(key, name) != name:
            raise SettingError("--token-file", path, f"a token in line {number} that no other name has")
    if not names:
        raise SettingError("--token-file", path, "at least one name with a token")
    return names

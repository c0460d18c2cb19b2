"""Isolation needs no privilege, and where the kernel refuses a part of it, that is said, or the start is refused."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from preprocessor.cli.doctor.isolation import check_isolation, lacking_means
from preprocessor.client import Client, Medium, chat, image, video
from preprocessor.workers import landlock
from tests.bench.service.watched import WatchedServer
from tests.media import moving_shapes_clip, photo
from tests.waiting import PATIENCE_SECONDS

USER = 54321
_AS_USER = (
    *("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"),
    *("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"),
)
_REFUSING = f"""
import os, sys
import pyseccomp
rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
if "filter" in sys.argv[1]:
    rules.add_rule(pyseccomp.ERRNO({errno.EINVAL}), "seccomp")
    rules.add_rule(pyseccomp.ERRNO({errno.EINVAL}), "prctl", pyseccomp.Arg(0, pyseccomp.EQ, 22))  # PR_SET_SECCOMP
if "landlock" in sys.argv[1]:
    rules.add_rule(pyseccomp.ERRNO({errno.ENOSYS}), {landlock._CREATE_RULESET})
rules.load()
os.execvp(sys.argv[2], sys.argv[2:])
"""


def unprivileged() -> tuple[str, ...]:
    """A command prefix: as a user that nothing else has, without capabilities, on a root that nobody can write."""
    steps = ["mount -t tmpfs -o mode=1777 none /tmp", *_open_python(), "mount -o remount,bind,ro /", 'exec "$@"']
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", " && ".join(steps), "sh", *_AS_USER)
    if shutil.which("unshare") is None or shutil.which("setpriv") is None or os.geteuid():
        pytest.skip("needs root, unshare and setpriv, to give up what root has")
    # By `env`, as `setpriv` itself may still read what its user may not.
    if subprocess.run([*command, "env", sys.executable, "-c", ""], check=False, capture_output=True).returncode:
        pytest.skip("needs a mount namespace, and a Python that every user may run")
    return command


def _open_python() -> list[str]:
    """Shell commands that show the Python of a folder that others may not enter, such as root's, and nothing else of it."""
    prefix = Path(sys.base_prefix)
    closed = [folder for folder in prefix.parents if not folder.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return []
    return [
        f"mkdir /tmp/python && mount --bind {shlex.quote(str(prefix))} /tmp/python",
        f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed[-1]))}",
        f"mkdir -p {shlex.quote(str(prefix))} && mount --move /tmp/python {shlex.quote(str(prefix))}",
    ]


def without(what: str) -> tuple[str, ...]:
    """A command prefix: on a kernel that refuses "filter", "landlock" or both."""
    return sys.executable, "-c", _REFUSING, what


def holds(*under: str) -> Mapping[str, bool]:
    """What `doctor` finds of isolation there."""
    command = [*under, sys.executable, "-m", "preprocessor.cli.doctor.isolation"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    found: Mapping[str, bool] = json.loads(done.stdout)
    return found


def status(process: psutil.Process) -> Mapping[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def token_count(server: WatchedServer, *media: Medium) -> int:
    """Of a prepared prompt."""
    with Client(server.address) as client:
        return client.prepare(chat([{"role": "user", "content": [*media, "What?"]}])).tensors["input_ids"].size


def test_a_user_without_privileges_has_isolation_on_a_read_only_root() -> None:
    options = ("--workers", "1", "--memory-budget", "64MiB", "--isolation", "required")
    with WatchedServer(*options, under=unprivileged(), environment={"TMPDIR": "/tmp", "HOME": "/tmp"}) as server:
        media = image(photo(64, 64)), video(moving_shapes_clip(seconds=1, width=64, height=64), fps=1)
        assert token_count(server, *media) > 10
        for process in server.tree():
            found = status(process)
            assert found["Uid"].split() == [str(USER)] * 4
            assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
            assert found["NoNewPrivs"] == "1"
        filtered = [status(worker)["Seccomp"] for worker in server.workers()]
        assert filtered and set(filtered) == {"2"}, "SECCOMP_MODE_FILTER"
        assert not os.access(f"/proc/{server.process.pid}/root/usr", os.W_OK), "else this shows nothing"


def test_without_landlock_nothing_is_lacking() -> None:
    found = holds(*without("landlock"))
    assert not found["landlock"]
    assert lacking_means(found) == []
    assert "no Landlock" in check_isolation(False, found).found


def test_without_the_filter_doctor_says_what_is_lacking_and_a_start_that_requires_it_is_refused() -> None:
    found = holds(*without("filter,landlock"))
    assert not any(found[name] for name in ("landlock", "no_files", "no_sockets", "no_programs", "no_signals"))
    assert found["memory_limit"]
    command = [*without("filter,landlock"), sys.executable, "-m", "preprocessor", "serve", "--isolation", "required"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert ended.returncode == 2
    assert "--isolation" in ended.stderr and "a filter of system calls" in ended.stderr


def test_landlock_alone_keeps_files_and_signals() -> None:
    if landlock.version() < 6:
        pytest.skip("this kernel's Landlock does not know signals")
    found = holds(*without("filter"))
    assert found["landlock"] and found["no_files"] and found["no_programs"] and found["no_signals"]
    assert not found["no_sockets"], "only connections are refused"


@pytest.mark.slow
def test_without_the_filter_a_service_works_and_says_so() -> None:
    options = ("--workers", "1", "--memory-budget", "64MiB")
    with WatchedServer(*options, under=without("filter,landlock")) as server:
        assert token_count(server, image(photo(64, 64))) > 10
        assert "no filter of system calls" in "".join(server.log)

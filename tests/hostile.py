"""Files that try to make a decoder open something else, and a process in which opening anything is death.

`python -m tests.hostile` reads every file with every reader of this project, and with FFmpeg as it comes, each in a process of
its own whose system calls for opening files, sockets and programs end it at once. It prints what became of each as JSON:
{file: {reader: "read", "refused REASON" or "reached out"}}.
"""

from __future__ import annotations

import functools
import io
import json
import os
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyseccomp

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.media import opencv
from preprocessor.media.audio import extract_audio
from preprocessor.media.frames import Choice, unreported
from preprocessor.media.image import decode_image, probe_image
from preprocessor.media.video import decode_frames, probe_video
from preprocessor.types.request import OnDamage
from tests.media import moving_shapes_clip, photo

REACHED_OUT = "reached out"
_OPENING_CALLS = (
    "open",
    "openat",
    "openat2",
    "creat",
    "socket",
    "connect",
    "bind",
    "execve",
    "execveat",
    "fork",
    "vfork",
)

_Options = dict[str, str]


def hostile_files(bait: str, port: int) -> dict[str, tuple[bytes, str, _Options]]:
    """Name → file, and the format and options with which FFmpeg as it comes would follow it; "" where it recognizes it.

    Args:
        bait: Path of a video that exists.
        port: Of this host; nothing need listen there.
    """
    web = f"http://127.0.0.1:{port}/clip.ts"
    anything = {
        "safe": "0",
        "protocol_whitelist": "file,http,tcp,udp,rtp,concat,subfile,crypto,data,pipe,tee,async,cache",
    }
    any_part = {**anything, "allowed_extensions": "ALL", "allowed_segment_extensions": "ALL", "extension_picky": "0"}
    files: dict[str, tuple[bytes, str, _Options]] = {}
    for name, target in {
        "a path": bait,
        "a file: url": f"file:{bait}",
        "http": web,
        "tcp": f"tcp://127.0.0.1:{port}",
        "subfile": f"subfile,,start,0,end,0,,:{bait}",
        "concat": f"concat:{bait}|{bait}",
        "async": f"async:{bait}",
        "cache": f"cache:{bait}",
    }.items():
        files[f"ffconcat, {name}"] = (f"ffconcat version 1.0\nfile '{target}'\n".encode(), "", anything)
    relative = f"ffconcat version 1.0\nfile {Path(bait).name}\n".encode()
    files["ffconcat, a name beside"] = (relative, "", {})
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXT-X-MEDIA-SEQUENCE:0\n"
    for name, lines in {
        "a path": f"#EXTINF:1,\n{bait}\n",
        "http": f"#EXTINF:1,\n{web}\n",
        "a key": f'#EXT-X-KEY:METHOD=AES-128,URI="{bait}"\n#EXTINF:1,\n{bait}\n',
        "a map": f'#EXT-X-MAP:URI="{bait}"\n#EXTINF:1,\n{bait}\n',
        "a list": f"#EXT-X-STREAM-INF:BANDWIDTH=1\n{bait}\n",
        "a rendition": f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="a",URI="{bait}"\n'
        f'#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"\n{bait}\n',
    }.items():
        files[f"hls, {name}"] = (f"{head}{lines}#EXT-X-ENDLIST\n".encode(), "hls", any_part)
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    files["sdp"] = (sdp.encode(), "", anything)
    external = {**anything, "enable_drefs": "1", "use_absolute_path": "1"}
    files["mov, a track elsewhere"] = (mov_with_its_track_elsewhere(bait), "", external)
    return files


def suspicious_files(bait: str, port: int) -> dict[str, bytes]:
    """Files that name others, which FFmpeg as it comes does not follow, or not from memory."""
    web = f"http://127.0.0.1:{port}/"
    return {
        "mkv with attachments": mkv_with_attachments(bait),
        "ffconcat before an mp4": f"ffconcat version 1.0\nfile {Path(bait).name}\n".encode() + Path(bait).read_bytes(),
        "ffconcat, crypto": f"ffconcat version 1.0\nfile 'crypto:{bait}'\n".encode(),
        "ffconcat, a pattern": f"ffconcat version 1.0\nfile '{bait}%03d.png'\n".encode(),
        "dash": _dash(f"<BaseURL>{bait}</BaseURL>"),
        "dash, a template": _dash(f'<SegmentTemplate media="{bait}" initialization="{bait}" duration="1"/>'),
        "rtsp": f"RTSP/1.0 302 Found\r\nLocation: rtsp://127.0.0.1:{port}/\r\n\r\n".encode(),
        "vobsub": b"# VobSub index file, v7\nsize: 64x64\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 0\n",
        "subtitles": f"1\n00:00:00,000 --> 00:00:01,000\n<img src='{web}'>{{\\fn{bait}}}\n\n".encode() * 40,
        "m3u": f"{bait}\n{web}\n".encode(),
        "pls": f"[playlist]\nFile1={bait}\nNumberOfEntries=1\n".encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{web}"/></entry></asx>'.encode(),
        "asf reference": f"[Reference]\r\nRef1={web}\r\n".encode(),
        "image pattern": f"{bait}%03d.png".encode(),
        "lavfi": f"movie={bait}".encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{bait}"/><image href="{web}"/></svg>'.encode(),
        "svg with an entity": f'<!DOCTYPE s [<!ENTITY x SYSTEM "file://{bait}">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>'.encode(),
        "eps": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({bait}) (r) file run\n".encode(),
        "mvg": f"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 9,9 '{web}'\npop graphic-context\n".encode(),
        "pdf": f"%PDF-1.7\n1 0 obj<</Type/Filespec/F({bait})/URI({web})>>endobj\n".encode(),
        "html": f'<html><img src="{web}"><iframe src="file://{bait}"></html>'.encode(),
        "a path": bait.encode(),
        "a url": web.encode(),
    }


def mov_with_its_track_elsewhere(path: str) -> bytes:
    """An mp4 whose samples lie in another file: its data reference is an alias (QuickTime File Format, "Data references")."""
    name = Path(path).name.encode()
    target = path.encode() + b"\0" * (len(path) % 2)
    alias = bytes(10) + b"\4disk".ljust(28, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    alias += (
        struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">hH", 2, len(target)) + target + struct.pack(">hH", -1, 0)
    )
    entry = b"alis" + bytes(4) + alias.ljust(160, b"\0")
    references = bytes(4) + struct.pack(">II", 1, len(entry) + 4) + entry
    return _with_box(moving_shapes_clip(seconds=1, width=64, height=64), b"dref", references)


def mkv_with_attachments(bait: str) -> bytes:
    """A good clip with a font and a picture beside it, named like a file that exists."""
    buffer = io.BytesIO()
    source = av.open(io.BytesIO(moving_shapes_clip(seconds=1, width=64, height=64)), "r")
    with source, av.open(buffer, "w", "matroska") as output:
        video = output.add_stream_from_template(source.streams.video[0])
        output.add_attachment(bait, "application/x-truetype-font", b"\0\1\0\0" * 20)
        output.add_attachment(f"file:{bait}", "image/png", photo(8, 8, "PNG"))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                output.mux(packet)
    return buffer.getvalue()


def readers() -> Mapping[str, Callable[[bytes], Any]]:
    """What this project reads untrusted files with."""
    limits = Limits()

    def video(data: bytes) -> None:
        clip = probe_video(data, limits)
        for _ in decode_frames(data, clip, Choice(np.arange(clip.frame_count))):
            pass

    def image(data: bytes) -> None:
        probe_image(data, limits)
        decode_image(data)

    def by_opencv(data: bytes) -> None:
        """Without the probe, which refuses most before OpenCV sees them."""
        choice = Choice(np.zeros(1, np.int64), "clip", lambda: None, OnDamage.FAIL, unreported)
        with opencv._capture(data, choice) as capture:
            capture.grab()

    return {
        "video": video,
        "sound": lambda data: extract_audio(data, 16_000, limits),
        "image": image,
        "opencv": by_opencv,
    }


def _dash(inside: str) -> bytes:
    representation = f'<Representation id="1" bandwidth="1000" codecs="avc1.4d401e">{inside}</Representation>'
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" '
        'minBufferTime="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period duration="PT1S">'
        f'<AdaptationSet mimeType="video/mp4" contentType="video">{representation}</AdaptationSet></Period></MPD>'
    ).encode()


def _with_box(data: bytes, name: bytes, content: bytes) -> bytes:
    """An mp4 whose index is at its end, with the content of one box of it replaced, and its parents' sizes with it."""

    def boxes(data: bytes) -> Iterator[bytes]:
        position = 0
        while position < len(data):
            size, kind = struct.unpack_from(">I4s", data, position)
            inner = data[position + 8 : position + size]
            if kind == name:
                inner = content
            elif kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                inner = b"".join(boxes(inner))
            yield struct.pack(">I4s", len(inner) + 8, kind) + inner
            position += size

    assert data.index(b"moov") > data.index(b"mdat"), "sample offsets would move"
    return b"".join(boxes(data))


def _plain(format_name: str, options: _Options, data: bytes) -> None:
    """FFmpeg as it comes."""
    with av.open(io.BytesIO(data), "r", format=format_name or None, container_options=dict(options)) as container:
        for _ in container.demux():
            pass


def _outcome(read: Callable[[bytes], Any], data: bytes) -> str:
    """What becomes of a file, read in a process that dies where it opens anything."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiving)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(20)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # FFmpeg's complaints
        _refuse_to_open()
        try:
            read(data)
            said = "read"
        except PreprocessorError as error:
            said = f"refused {error.reason}"
        except (av.error.FFmpegError, EOFError) as error:
            said = f"failed {type(error).__name__}"
        os.write(sending, said.encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as answer:
        said = answer.read().decode()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return REACHED_OUT if os.WTERMSIG(status) == signal.SIGSYS else f"killed by {os.WTERMSIG(status)}"
    return said or "died"


def _refuse_to_open() -> None:
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    for name in _OPENING_CALLS:
        rules.add_rule(pyseccomp.KILL_PROCESS, name)
    rules.load()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bait = str(Path(folder) / "bait.mp4")
        Path(bait).write_bytes(moving_shapes_clip(seconds=1, width=64, height=64))
        os.chdir(folder)
        ours = readers()
        for read in ours.values():  # whatever is loaded at first use is loaded now
            for data in (Path(bait).read_bytes(), photo(64, 64)):
                try:
                    read(data)
                except PreprocessorError:
                    continue
        outcomes: dict[str, dict[str, str]] = {
            "a good clip": {"video": _outcome(ours["video"], Path(bait).read_bytes())}
        }
        outcomes["a good photo"] = {"image": _outcome(ours["image"], photo(64, 64))}
        for name, (data, format_name, options) in hostile_files(bait, 9).items():
            outcomes[name] = {reader: _outcome(read, data) for reader, read in ours.items()}
            outcomes[name]["plain"] = _outcome(functools.partial(_plain, format_name, options), data)
        for name, data in suspicious_files(bait, 9).items():
            outcomes[name] = {reader: _outcome(read, data) for reader, read in ours.items()}
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()

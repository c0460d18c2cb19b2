"""`python -m tests.fuzz.guided`: coverage-guided fuzzing, by atheris, of the parsers that are written in Python here.

They run on untrusted bytes before any C decoder or in the service's own process: first bytes of files and packets, URLs,
specs. There atheris sees every branch, and finds in seconds what blind mutation takes days for. Decoders in C it cannot see
into (their wheels carry no instrumentation), and a service in many processes neither: those are `tests.fuzz`'s.

Whatever a target raises that is not one of our errors is a finding; it ends the target, and its input is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError

from preprocessor.config import FetchSettings, Limits
from preprocessor.errors import PreprocessorError
from preprocessor.pipeline import request_checks
from preprocessor.v1 import preprocessor_pb2 as pb

_INSTRUMENTED = (
    "preprocessor.media",
    "preprocessor.service.reading",
    "preprocessor.service.fetch",
    "preprocessor.pipeline.request_checks",
    "preprocessor.workers.untrusted",
    "preprocessor.workers.claims",
)
_SEED_NAMES = {
    "image headers": ("image jpeg", "image jpeg progressive", "image webp animated"),
    "file heads": ("mp4 h264", "mkv h264", "avi mpeg4", "wav"),
    "ends of files": (
        "mp4 h264 fragmented",
        "mkv h264",
        "avi mpeg4",
        "flv h264",
        "ogg opus",
        "mpeg ps",
        "gif",
        "apng",
        "mp3",
        "aac",
    ),
    "packet heads": ("h264", "hevc"),
    "webp chunks": ("webp animated",),
}
_MAX_INPUT_BYTES = 4096


def _image_headers(data: bytes) -> None:
    from preprocessor.media import image_headers, image_orientation, unread_formats

    image_headers.check_header(data, Limits(), "it")
    image_orientation._without_png_pixels(data)
    unread_formats.unread_container(data)


def _file_heads(data: bytes) -> None:
    from preprocessor.media import audio, orientation

    for name in ("mov,mp4", "matroska,webm"):
        orientation.may_be_turned(data, name)
    audio._is_wav_of_unknown_size(data)


def _ends_of_files(data: bytes) -> None:
    from preprocessor.media.truncation import ends_early

    ends_early(data)


def _packet_heads(data: bytes) -> None:
    from preprocessor.media import bitstream

    bitstream.holds_gif_image(data)
    list(bitstream.av1_kinds(data))
    for length_size in range(5):
        list(bitstream.nal_heads(data, length_size))  # type: ignore[arg-type]


def _webp_chunks(data: bytes) -> None:
    from preprocessor.media import webp

    list(webp._chunks(data))
    webp.is_webp(data)


def _urls(data: bytes) -> None:
    from preprocessor.service.fetch import addresses, urls

    text = data.decode("utf-8", "replace")
    addresses.AddressRules(()).allow(text)
    urls.WebRules(FetchSettings(hosts="*.example.com,example.com")).read(text, "it")


def _data_urls(data: bytes) -> None:
    from preprocessor.service.fetch.data_urls import read_data_url

    read_data_url("data:" + data.decode("utf-8", "replace"), "it", 1000)


def _specs(data: bytes) -> None:
    from preprocessor.service import parameters, reading
    from preprocessor.types.request import Modality

    try:
        spec = pb.GenerateSpec.FromString(data)
    except DecodeError:
        return
    request, _ = reading.read_spec(spec.prompt)
    request_checks.check_request(request, tuple(Modality), Limits())
    parameters.read_parameters(spec.parameters, ())
    parameters.read_stop_strings(spec.parameters)


def _worker_messages(data: bytes) -> None:
    from preprocessor.types.plan import PixelPlan
    from preprocessor.types.request import ChatPrompt, PixelForm, PreparationRequest
    from preprocessor.workers import claims, untrusted
    from preprocessor.workers.channel import Finished, RowsFinished, check_finished
    from preprocessor.workers.payloads import EarlyPlanPayload, PixelPayload, PlanPayload

    pixels = PixelPlan((), 100, 1, PixelForm.UINT8, 100, "pyav")
    planning = PlanPayload(PreparationRequest(ChatPrompt(()), ()), Limits())
    for payload in (planning, EarlyPlanPayload(planning, {}), PixelPayload((), pixels, 0, range(100))):
        try:
            value, places = untrusted.parse(data)
            sizes = [one for one in places if type(one) is int and 0 <= one <= _MAX_INPUT_BYTES]
            match untrusted.build(value, [bytes(size) for size in sizes]):
                case RowsFinished(first_row, row_count):
                    claims.check_rows(first_row, row_count, range(100))
                case Finished() as finished:
                    check_finished(finished, payload)
        except claims.Violation:
            continue


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "image headers": _image_headers,
    "file heads": _file_heads,
    "ends of files": _ends_of_files,
    "packet heads": _packet_heads,
    "webp chunks": _webp_chunks,
    "urls": _urls,
    "data urls": _data_urls,
    "specs": _specs,
    "worker messages": _worker_messages,
}


def examples(name: str) -> list[bytes]:
    """Good inputs of a target, to begin with."""
    if name in _SEED_NAMES:
        from tests.fuzz.seeds import file_of

        return [file_of(seed)[:_MAX_INPUT_BYTES] for seed in _SEED_NAMES[name]]
    match name:
        case "urls":
            return [
                b"https://clips.example.com:443/a%20b.mp4?x=1#y",
                b"http://[::ffff:10.0.0.1]/",
                b"//user@example.com\\",
            ]
        case "data urls":
            return [b"image/png;base64,AAAA", b",%41", b";charset=utf-8;base64,AA=="]
        case "worker messages":
            return _worker_examples()
    medium = pb.Media(
        key="it",
        modality=pb.MODALITY_VIDEO,
        chunked=pb.Chunked(),
        sampling=pb.Sampling(indices=pb.FrameIndices(values=[1, 2]), end_seconds=2),
    )
    message = pb.Message(role="user", parts=[pb.Part(media_key="it"), pb.Part(text="look")])
    prompt = pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message]), media=[medium])
    parameters = pb.GenerationParameters(max_tokens=4, top_p=0.5, stop_strings=["."], min_p=0.5, json_schema="{}")
    return [pb.GenerateSpec(prompt=prompt, parameters=parameters).SerializeToString()]


def _worker_examples() -> list[bytes]:
    import numpy as np

    from preprocessor.errors import Overloaded
    from preprocessor.types.plan import Plan
    from preprocessor.types.result import PixelReport
    from preprocessor.types.timing import Timings
    from preprocessor.workers.channel import Fault, Finished, RowsFinished
    from preprocessor.workers.untrusted import encode, to_bytes

    plan = Plan((), {"input_ids": np.zeros(3, np.int32)}, Timings(), None, 0)
    outcomes: tuple[object, ...] = ((plan, {}, None), PixelReport(Timings(), ()), Overloaded("full", media_key="it"))
    written = []
    for message in (
        RowsFinished(0, 5),
        Finished(None, Fault("a", "b")),
        *(Finished(one, None) for one in outcomes),
    ):
        buffers: list[memoryview] = []
        value = encode(message, buffers)
        written.append(to_bytes(value, [len(one) for one in buffers]))
    return written


def only_our_errors(target: Callable[[bytes], None], data: bytes) -> None:
    """Read bytes; an error that a caller is to see is a good answer."""
    try:
        target(data)
    except PreprocessorError:
        return


def _fuzz_one(name: str, seconds: float, folder: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        only_our_errors(TARGETS[name], b"")  # imports what it reads with, before anything else does
    inputs = folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for place, data in enumerate(examples(name)):
        (inputs / f"example-{place}").write_bytes(data)
    options = [
        f"-max_total_time={max(1, int(seconds))}",  # libFuzzer runs without end for 0
        f"-max_len={_MAX_INPUT_BYTES}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
    ]
    atheris.Setup(
        [sys.argv[0], *options, "-verbosity=0", str(inputs)], lambda data: only_our_errors(TARGETS[name], data)
    )
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=140.0, help="for all targets together, a second each at least")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz/guided"), help="where inputs are kept")
    parser.add_argument("target", nargs="?", choices=TARGETS, help="one target, in this process")
    given = parser.parse_args()
    if given.target:
        _fuzz_one(given.target, given.seconds, given.folder / given.target.replace(" ", "-"))
    failed = []
    for name in TARGETS:
        each = ["--seconds", str(given.seconds / len(TARGETS)), "--folder", str(given.folder), name]
        run = subprocess.run([sys.executable, "-m", __spec__.name, *each], capture_output=True, text=True)
        stats = [line for line in run.stderr.splitlines() if "number_of_executed_units" in line]
        print(
            f"{name}: {stats[0].split()[-1] if stats else '?'} inputs, {'ok' if run.returncode == 0 else 'FAILED'}",
            flush=True,
        )
        if run.returncode:
            failed.append(name)
            print(run.stdout[-2000:], run.stderr[-2000:], sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

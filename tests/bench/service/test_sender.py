"""The sender that the service is compared with says what it was told, and nothing else."""

from __future__ import annotations

import numpy as np

from preprocessor.traffic.load import Ask
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import write_rows
from tests.bench.service.sender import Piece, SenderAlone, record


def test_an_answer_that_is_sent_again_is_recorded_as_it_was() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4000, 1536), np.uint8)
    pieces = [Piece(pb.PrepareResponse(header=pb.Header(model="m")).SerializeToString(), b"")]
    for message in write_rows(0, pixels, 0, len(pixels)):
        rows = pb.PrepareResponse.FromString(message).rows.data
        pieces.append(Piece(message.removesuffix(rows), rows))
    pieces.append(Piece(pb.PrepareResponse(report=pb.Report(pixel_bytes=pixels.nbytes)).SerializeToString(), b""))
    with SenderAlone(pieces, seconds=0.05) as sender:
        ask = Ask("any", (b"spec", b"chunk"))
        assert record(sender.address, ask) == record(sender.address, ask) == pieces
        assert sender.cpu_seconds() > 0

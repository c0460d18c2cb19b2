"""`preprocessor fingerprint`: what an engine must have been set up for, as parameters of its Triton model."""

from __future__ import annotations

import argparse


def run(options: argparse.Namespace) -> int:
    # Seconds of torch, which a wrong option need not wait for.
    from engine_client import format_parameters
    from preprocessor.models.fingerprint import fingerprint_parts
    from preprocessor.models.registry import load_model

    print(f"parameters [\n{format_parameters(fingerprint_parts(load_model(options.model, options.video_markers)))}\n]")
    return 0

"""What may change a result from one release to the next: library versions and a model's own files.

A model's `fingerprint` is one digest over all of it, for caches: it changes whenever anything does. `fingerprint_parts` has the
same by name, for comparison with an engine that was set up elsewhere: a mismatch must say what differs.
"""

from __future__ import annotations

import json

from preprocessor.models.digests import digest_vocabulary
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.versions import library_versions

CONTRACT_VERSION = "1"
"""Version of the tensors' names, types and meanings. Raised when an engine written for the last version would misread them."""


def fingerprint_parts(model: LoadedModel) -> dict[str, str]:
    """What an engine must agree with, by name; values are text, or JSON where they are numbers or lists.

    Returns:
        `contract_version`, `model`, `tokenizer_sha256`, `preprocessing_sha256` (the model's one digest) and a `library.NAME`
        each; for a model of a fast family also `family`, `patch_size`, `merge_size`, `temporal_patch_size` (px, patches,
        frames), `pixel_mean`, `pixel_std` (on the 0 to 1 scale) and `rescale_factor`; where its family marks frames,
        `video_markers`.
    """
    parts = {
        "contract_version": CONTRACT_VERSION,
        "model": model.name,
        "tokenizer_sha256": digest_vocabulary(model.tokenizer),
        "preprocessing_sha256": model.fingerprint,
        **{f"library.{library}": installed for library, installed in library_versions().items()},
    }
    description = model.describe()
    if description.image is not None:  # families read settings whose video part differs in its budget alone
        pixels = description.image
        parts |= {
            "family": description.family,
            "patch_size": json.dumps(pixels.patch_size),
            "merge_size": json.dumps(pixels.merge_size),
            "temporal_patch_size": json.dumps(pixels.temporal_patch_size),
            "pixel_mean": json.dumps(pixels.mean),
            "pixel_std": json.dumps(pixels.std),
            "rescale_factor": json.dumps(pixels.rescale_factor),
        }
    if description.video_markers is not None:
        parts["video_markers"] = description.video_markers.value
    return parts

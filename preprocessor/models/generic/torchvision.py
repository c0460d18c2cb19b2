"""Making torchvision importable, of which transformers' video classes and most image classes need the Python part.

Their resize, crop and normalize are `torchvision.transforms.v2.functional`, which is plain torch. The compiled operators
(`torchvision::nms` and its like) are for detection, and no processor of a chat model calls them.
"""

from __future__ import annotations

import importlib
import logging
import sys

import torch
from transformers.utils import import_utils

_LOGGER = logging.getLogger(__name__)

# The operators that importing torchvision 0.28 asks torch for (`_meta_registrations.py`), as csrc/ops/nms.cpp declares them.
_OPERATORS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))
_declared: list[torch.library.Library] = []  # a Library takes its operators away when it goes


def settle_torchvision() -> str:
    """Decide whether transformers may use torchvision; returns its version, or "absent".

    The package index's build beside a CPU-only torch cannot load its compiled operators, and its import fails although nothing
    here calls them. It is then imported without them. Where that fails, too, torchvision is hidden, and transformers uses its
    Pillow classes, which exist for few image processors and for no video processor.
    """
    try:
        return _version()
    except ImportError:
        return "absent"
    except RuntimeError as error:
        if "torchvision::nms" in str(error) and not _declared:
            return _without_operators()
        return _hidden(error)
    except Exception as error:  # whatever a library built for another torch raises
        return _hidden(error)


def _version() -> str:
    """Without the local part: the builds for CPUs and for GPUs have the same Python code."""
    return str(importlib.import_module("torchvision").__version__).split("+")[0]


def _without_operators() -> str:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _OPERATORS:
        library.define(schema)
    _declared.append(library)
    try:
        return _version()
    except Exception as error:  # as above
        return _hidden(error)


def _hidden(error: Exception) -> str:
    _LOGGER.warning("torchvision is installed but cannot be imported; continuing without it: %s", error)
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # how Python itself says "not importable"
    import_utils.is_torchvision_available.cache_clear()
    import_utils.is_torchvision_v2_available.cache_clear()
    import_utils.is_torchvision_greater_or_equal.cache_clear()
    return "absent"

"""Makes `import torchvision` work beside a CPU build of torch.

It is imported before timm or Lightning, in every process.

torchvision's registry wheel is built for CUDA. Beside a CPU-only torch its compiled extension does not load, and
the import ends in "RuntimeError: operator torchvision::nms does not exist", which takes timm, torchmetrics and
pytorch_lightning down with it. The cure is to declare the two operators' schemas and import again; nothing here
uses torchvision's compiled parts (ops, io). Where the plain import works, this module does nothing.
"""

from __future__ import annotations

import importlib
import sys

import torch

_OPERATORS = ("nms", "qnms")
_library: torch.library.Library | None = None  # the declarations live as long as this reference


def _import_torchvision() -> None:
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in _OPERATORS:
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")


_import_torchvision()

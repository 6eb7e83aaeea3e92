"""Makes `import torchvision` work beside the CPU build of torch; import this before it, torch-fidelity or diffusers.

The torchvision wheel on PyPI is compiled against the CUDA build of torch. Beside the CPU build its library of
operators cannot be loaded, and torchvision then fails while it registers the gradients of two operators that do
not exist: "operator torchvision::nms does not exist". Both suppress overlapping detection boxes; nothing here
calls them. Declaring their signatures, without a body, is enough for the import. Where the library does load
(a machine with CUDA, or a CPU wheel of torchvision) nothing is declared.
"""

import importlib.util
from pathlib import Path

import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for library in sorted(path for folder in folders for path in Path(folder).glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


# Declarations live as long as this object, so a module holds it.
_declared = None
if not _operators_load():
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in OPERATORS:
        _declared.define(_name + SIGNATURE)

"""FlexTok: train image tokenizers, tokenize corpora, train priors and judge the result."""

import importlib
from typing import TYPE_CHECKING, Any

from flextok.version import __version__

if TYPE_CHECKING:
    from flextok.data.tokens import TokenStore
    from flextok.model.load import load_prior, load_tokenizer

__all__ = ["TokenStore", "__version__", "load_prior", "load_tokenizer"]

# Found on first use, so that `import flextok` costs no torch.
_HOMES = {
    "TokenStore": "flextok.data.tokens",
    "load_prior": "flextok.model.load",
    "load_tokenizer": "flextok.model.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flextok' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)

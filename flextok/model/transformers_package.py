"""The package transformers, which only some encoders, teachers and metrics need."""

from typing import Any

from flextok.errors import UsageError


def import_transformers(whose: str, remedy: str = "run `pip install transformers==5.24.0`") -> Any:
    """The package, quiet; raises UsageError, which ends in `remedy`, where it is not installed."""
    from flextok.runtime import torchvision_compat  # noqa: F401  (it imports torchvision)

    # isort: split
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(f"expected the package transformers for {whose}, found none; {remedy}") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers

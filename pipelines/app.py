"""Every command of `flextok`, and how one ends: with an exit code, and where it failed with a line that says why."""

import sys
import traceback
import warnings
from collections.abc import Sequence

import typer

from flextok.errors import FlextokError
from flextok.runtime import interrupts, log
from flextok.runtime.storage_errors import as_storage_error
from flextok.storage import redact
from pipelines.commands import (
    artifacts,
    captions,
    coordinates,
    corpus,
    evaluation,
    keeping,
    pipeline,
    serving,
    tokens,
    train,
)

TYPER_INTERRUPTED = 130

app = typer.Typer(
    name="flextok",
    help="Train image tokenizers, tokenize corpora, train priors and judge the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (pipeline.run, pipeline.status, pipeline.refresh, serving.ui, serving.daemon, serving.serve):
    app.command()(command)
for command in (corpus.shard, train.train, tokens.tokenize, tokens.encode, tokens.decode, tokens.generate):
    app.command()(command)
for command in (evaluation.evaluate, evaluation.compare, evaluation.speed, evaluation.report):
    app.command()(command)
app.command("coordinate-check")(coordinates.coordinate_check)
app.command("encode-text")(captions.encode_text)
app.command("export-samples")(evaluation.export_samples)
app.command("import-checkpoint")(artifacts.import_checkpoint)
app.command("export-prior")(artifacts.export_prior)
for command in (artifacts.inspect, artifacts.verify, artifacts.lineage, keeping.promote, keeping.prune):
    app.command()(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command and give back its exit code."""
    debug = "--debug" in arguments
    log.setup()
    if not debug:
        warnings.simplefilter("ignore")
    try:
        code = app(args=list(arguments), standalone_mode=False)
        if code == TYPER_INTERRUPTED:
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(interrupts.interrupted_line(), 1, error, debug)
    except FlextokError as error:
        return _fail(str(error), error.exit_code, error, debug)
    except Exception as error:  # noqa: BLE001 - the last place where an error can become one line
        format_message = getattr(error, "format_message", None)
        if format_message is not None:  # typer's own: an unknown option, a missing argument
            return _fail(f"{format_message().rstrip('.')}; see `flextok --help`", 2, error, debug)
        told = as_storage_error(error, "finish the command")
        if told is not None:
            return _fail(str(told), told.exit_code, error, debug)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, error, debug)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print("error: " + redact(" ".join(message.split())), file=sys.stderr, flush=True)
    return code

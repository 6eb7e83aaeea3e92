"""Commands that serve until they are told to end: ui, daemon, serve."""

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from flextok.errors import FlextokError, UsageError
from pipelines.commands.options import DEFAULT_WORKSPACE, Debug, PriorPath, Profiles, Sets, TokenizerPath, WorkspaceUrl
from pipelines.recipe import DEFAULT_PROFILE, check_together, load_recipe
from pipelines.workspace import Workspace, only_daemon

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks whether a profile was edited
TOLD_TO_END = (0, 130, -2, -15)


def ui(
    profiles: Profiles = [DEFAULT_PROFILE],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    workspace: WorkspaceUrl = DEFAULT_WORKSPACE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 3000,
    debug: Debug = False,
) -> None:
    """Dagster's UI and daemon for this workspace, on 127.0.0.1, until Ctrl-C; an edited profile takes effect by itself."""
    from flextok.runtime.process_group import process_group
    from pipelines.reloading import LOCATION, Reloader

    check_together([load_recipe(profile, sets) for profile in profiles])
    place = Workspace(workspace)
    environment = {
        **os.environ,
        "FLEXTOK_PROFILE": "\n".join(profiles),
        "FLEXTOK_SET": "\n".join(sets),
        "FLEXTOK_WORKSPACE": place.root,
    }
    # Else a schedule or a sensor that lists a large source is cut off after a minute.
    for kind in ("SCHEDULE", "SENSOR"):
        environment.setdefault(f"DAGSTER_{kind}_GRPC_TIMEOUT_SECONDS", "600")
    command = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-m",
        LOCATION,
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with (
        only_daemon(place.prepare_dagster_home()),
        place.plain_dagster_home() as home,
        process_group(command, {**environment, "DAGSTER_HOME": str(home)}) as process,
    ):
        logger.info("Dagster's UI: http://127.0.0.1:%d (Ctrl-C ends it)", port)
        reloader = Reloader(profiles, sets, port)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
                reloader.look()
        except KeyboardInterrupt:
            return
    _require_good_end(process.returncode, "UI")


def daemon(
    locations: Annotated[
        Path, typer.Option("--locations", "-w", metavar="FILE.yaml", help="Dagster's file of code locations.")
    ],
    debug: Debug = False,
) -> None:
    """Dagster's daemon of a deployment, whose settings lie in DAGSTER_HOME; only one at a time works there."""
    from flextok.runtime.process_group import process_group

    home = os.environ.get("DAGSTER_HOME")
    if not home or not locations.is_file():
        raise UsageError(
            f"expected DAGSTER_HOME and a file of code locations, found DAGSTER_HOME={home or ''} and {locations}"
        )
    command = [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", str(locations)]
    with only_daemon(Path(home)), process_group(command, dict(os.environ)) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            return
    _require_good_end(process.returncode, "daemon")


def serve(
    prior: PriorPath,
    tokenizer: TokenizerPath,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is everybody's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Most images drawn at once.")] = 64,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Most that wait; others get 429.")] = 1024,
    debug: Debug = False,
) -> None:
    """Images from classes or captions over HTTP, with a page to try it, until Ctrl-C."""
    from flextok.serve.server import serve as serve_prior

    serve_prior(prior, tokenizer, host, port, batch, queue)


def _require_good_end(code: int, what: str) -> None:
    if code not in TOLD_TO_END:
        raise FlextokError(f"expected Dagster's {what} to run, found it ended with {code}; see its lines above")

"""Notices on stderr: as they are, warnings marked, colours on a terminal only."""

import io
import logging
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from flextok.runtime import log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def shown() -> None:
    log.setup()


def test_notices_are_plain_lines_and_warnings_say_so(capsys):
    log.setup()  # a second time changes nothing
    logging.getLogger("flextok.data").info("sharded %d", 3)
    logging.getLogger("pipelines.execute").warning("odd")
    logging.getLogger("flextok.data").debug("unseen")
    logging.getLogger("another").info("not ours")
    assert capsys.readouterr().err == "sharded 3\nwarning: odd\n"


def test_a_terminal_gets_colours(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    logging.getLogger("flextok").warning("odd")
    logging.getLogger("flextok").info("even")
    assert terminal.getvalue() == "\x1b[33mwarning: odd\x1b[0m\neven\n"


def test_a_line_stands_above_a_bar_that_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(console=Console(file=terminal, force_terminal=True)) as progress:
        progress.add_task("work", total=2)
        logging.getLogger("flextok").info("even")
    lines = terminal.getvalue().splitlines()
    assert any(line.endswith("even") for line in lines) and any(
        "work" in line for line in lines[lines.index(next(x for x in lines if x.endswith("even"))) :]
    )


def test_library_records_reach_other_handlers(caplog):
    with caplog.at_level(logging.INFO, logger="flextok"):
        logging.getLogger("flextok.train").info("resumed")
    assert caplog.messages == ["resumed"]

"""`flextok serve` in a process of its own."""

import asyncio
import signal
from pathlib import Path

import pytest
from flextok_process import END_S, Command
from http_client import Answer, generate
from serve_models import make_prior, make_tokenizer

from flextok.errors import UsageError
from flextok.model.checkpoint import save_checkpoint
from flextok.model.load import load_prior
from flextok.model.priors.base import Prior
from flextok.serve.server import serve


def saved(folder: Path, tokenizer_digest: str | None = None) -> tuple[str, str]:
    """URLs of a prior and a tokenizer."""
    tokenizer, prior = make_tokenizer(), make_prior("class")
    at = save_checkpoint(str(folder / "tokenizer"), "tokenizer", tokenizer.state_dict(), tokenizer.config, [], {})
    config = prior.config.model_copy(update={"tokenizer": tokenizer_digest or at.digest})
    return save_checkpoint(str(folder / "prior"), "prior", prior.state_dict(), config, [], {}).url, at.url


def test_it_serves_and_ends_within_ten_seconds_of_sigterm(tmp_path: Path) -> None:
    """Also while it draws for hundreds, each of whom gets an answer or a closed connection."""
    prior_url, tokenizer_url = saved(tmp_path)
    command = Command("serve", "--prior", prior_url, "--tokenizer", tokenizer_url, "--port", "0", "--batch", "1")
    command.wait_for("serving on ")
    url = next(word for word in command.told[-1].split() if word.startswith("http://")).rstrip(",")

    async def ask_and_end() -> tuple[list[Answer | BaseException], float]:
        first = await generate(url, label=1, format="tokens")
        assert first.json()["tokens"] == expected
        asked = [asyncio.ensure_future(generate(url, label=0, id=row)) for row in range(300)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        seconds = await asyncio.to_thread(command.end_by, signal.SIGTERM)
        return await asyncio.gather(*asked, return_exceptions=True), seconds

    prior: Prior = load_prior(prior_url)
    expected = prior.generate(labels=[1])[0].tolist()
    answers, seconds = asyncio.run(asyncio.wait_for(ask_and_end(), 60))
    assert seconds < END_S and command.process.returncode == 0, command.told
    statuses = {answer.status for answer in answers if isinstance(answer, Answer)}
    assert {200, 503} >= statuses >= {200}
    assert all(isinstance(answer, Answer | OSError | asyncio.IncompleteReadError) for answer in answers)
    assert command.left() == [] and not any("Traceback" in line for line in command.told)


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    prior_url, tokenizer_url = saved(tmp_path, "ab" * 32)
    with pytest.raises(UsageError, match=r"expected the tokenizer abab.*; give that tokenizer"):
        serve(prior_url, tokenizer_url, "127.0.0.1", 0, 1, 1)
    prior_url, tokenizer_url = saved(tmp_path / "fitting")
    with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.1:0: .*; give another --host or --port"):
        serve(prior_url, tokenizer_url, "203.0.113.1", 0, 1, 1)

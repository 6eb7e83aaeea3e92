"""An exported prior, read by `transformers` alone."""

from pathlib import Path

import pytest
import torch
from test_prior import CONFIGS, make_prior
from typer.testing import CliRunner

from flextok.errors import UsageError
from flextok.model import export
from flextok.model.checkpoint import save_checkpoint
from flextok.model.priors.base import Prior
from flextok.provenance import lineage
from flextok.runtime import torchvision_compat  # noqa: F401  (transformers imports torchvision)
from pipelines.app import app

IDS = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(3))


def saved(kind: str, folder: Path) -> tuple[Prior, str]:
    prior = make_prior(kind)
    return prior, save_checkpoint(str(folder / "prior"), "prior", prior.state_dict(), prior.config, [], {}).url


@torch.no_grad()
def logits_of(prior: Prior, ids: torch.Tensor, labels: torch.Tensor | None, drop: torch.Tensor | None) -> torch.Tensor:
    seen = []
    hook = prior.head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    prior.loss(ids, labels, None, drop)
    hook.remove()
    return seen[0]


def test_transformers_computes_the_same_logits(tmp_path: Path) -> None:
    """At every position, of images with a class and of one without; and draws what it likes best as ours does."""
    from transformers import AutoModelForCausalLM

    prior, url = saved("llama", tmp_path)
    assert CliRunner().invoke(app, ["export-prior", url, str(tmp_path / "exported")]).exit_code == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert type(theirs).__module__.startswith("transformers.models.llama")
    ids, labels, drop = IDS[:, :6], torch.tensor([0, 2, 1]), torch.tensor([False, False, True])
    first = torch.tensor([[11 + 0], [11 + 2], [11 + 3]])  # classes 0 and 2, then no class
    logits = theirs(torch.cat([first, ids[:, :-1]], dim=1)).logits
    assert (logits[..., :11] - logits_of(prior, ids, labels, drop)).abs().max() < 1e-4
    assert not logits[..., 11:].any()
    drawn = theirs.generate(first.repeat(20, 1))[:, 1:]
    assert drawn.shape == (60, 6) and drawn.max() < 11 and drawn.unique().numel() > 5
    greedy = theirs.generate(first[:2], do_sample=False)[:, 1:]
    assert torch.equal(greedy, prior.generate(labels=[0, 2], temperature=0))


def test_the_folder_says_where_it_is_from_and_holds(tmp_path: Path) -> None:
    _, url = saved("llama of nothing", tmp_path)
    dest = tmp_path / "new" / "exported"
    digest = export.export_prior(url, str(dest))
    names = {"config.json", "generation_config.json", "model.safetensors", "provenance.json"}
    assert {path.name for path in dest.iterdir()} == names and [path.name for path in dest.parent.iterdir()] == [
        "exported"
    ]
    tree = lineage(str(dest))
    saved_digest = Path(url).name
    assert (tree["digest"], [item["digest"] for item in tree["inputs"]]) == (digest, [saved_digest])
    assert tree["inputs"][0]["found"] and export.verify_export(str(dest)) == []
    config = (dest / "config.json").read_text()
    (dest / "config.json").write_text(config.replace("10000.0", "10001.0"))
    assert "expected content with digest" in export.verify_export(str(dest))[0]


@pytest.mark.parametrize("kind", sorted(CONFIGS.keys() - {"llama", "llama of nothing"}))
def test_another_kind_is_refused_with_the_setting(kind: str, tmp_path: Path) -> None:
    _, url = saved(kind, tmp_path)
    with pytest.raises(UsageError, match=r"kind llama, found .* of kind autoregressive.*prior.model.kind=llama"):
        export.export_prior(url, str(tmp_path / "exported"))
    assert [path.name for path in tmp_path.iterdir()] == ["prior"]


def test_nothing_is_half_there_and_nothing_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, url = saved("llama", tmp_path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="expected nothing at"):
        export.export_prior(url, str(tmp_path / "taken"))
    with pytest.raises(UsageError, match="expected a local path"):
        export.export_prior(url, "s3://bucket/exported")

    def interrupted(_config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "generation_config", interrupted)  # the weights are written by then
    with pytest.raises(KeyboardInterrupt):
        export.export_prior(url, str(tmp_path / "exported"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prior", "taken"]

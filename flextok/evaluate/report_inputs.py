"""The artifacts a report is about, found from two evaluations by their lineage."""

from typing import Any

from flextok import provenance
from flextok.errors import UsageError
from flextok.evaluate.report import ReportInputs


def find_report_inputs(reconstruction_url: str, generation_url: str, val_tokens_url: str) -> ReportInputs:
    """The models and data behind two evaluations; raises UsageError naming one that is gone."""
    seen, drawn = provenance.lineage(reconstruction_url), provenance.lineage(generation_url)
    has_autoencoder = any(item["kind"] == "vae" for item in _behind(seen, "tokenizer")["inputs"])
    return ReportInputs(
        reconstruction_url=reconstruction_url,
        generation_url=generation_url,
        samples_url=_behind(drawn, "samples")["uri"],
        tokenizer_url=_behind(seen, "tokenizer")["uri"],
        prior_url=_behind(drawn, "samples", "prior")["uri"],
        train_tokens_url=_behind(drawn, "samples", "prior", "tokens")["uri"],
        val_tokens_url=val_tokens_url,
        train_url=_behind(drawn, "samples", "prior", "tokens", "corpus")["uri"],
        val_url=_behind(seen, "corpus")["uri"],
        latents_url=_behind(seen, "tokenizer", "vae")["uri"] if has_autoencoder else None,
    )


def _behind(node: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """The artifact that is reached from a node of a lineage tree by inputs of these kinds."""
    for kind in kinds:
        found = [item for item in node["inputs"] if item["kind"] == kind]
        if not found or not found[0]["found"]:
            raise UsageError(f"expected the {kind} behind {node['uri']}, found it is not there; give other evaluations")
        node = found[0]
    return node

"""The summary at the top of the page: labels, one or two numbers each, and what they mean."""

from typing import Any

from flextok.evaluate.report.numbers import RANDOM_TOKENS, Numbers
from flextok.metrics.base import STATISTICS


def cards(numbers: Numbers, keeps: list[int], sample_keep: int) -> list[dict[str, Any]]:
    """Reconstructions, samples, prior, tokens. `keeps`: token counts of the reconstructions, ascending; `sample_keep`:
    the most tokens of a sample."""
    return [*_reconstructions(numbers, keeps), *_samples(numbers, sample_keep), *_tokens(numbers)]


def _reconstructions(numbers: Numbers, keeps: list[int]) -> list[dict[str, Any]]:
    fewest, most = keeps[0], keeps[-1]
    found = []
    for index, metric in enumerate(metric for metric in numbers.image_metrics() if metric.in_summary):
        protocol = numbers.protocol(metric.name, most)
        decoder = protocol["decoder"]
        how = f"{_images(protocol['data'])}, {decoder['steps']} steps, decoder guidance {decoder['decoder_guidance']:g}"
        hint = metric.hint or f"{metric.better} is closer"
        unit = f" in {metric.shown_unit}" if metric.shown_unit else ""
        found.append(
            {
                "label": f"{metric.label or metric.name}{unit}, K={fewest} → K={most}",
                "numbers": [numbers.pick(metric.name, fewest), numbers.pick(metric.name, most)],
                "between": "→",
                "hint": hint if index else f"{hint}; {how}",
            }
        )
    if "mae_reduction" in numbers:
        found.append(
            {
                "label": STATISTICS["mae_reduction"].label,
                "numbers": [numbers.pick("mae_reduction")],
                "between": "",
                "hint": f"from {fewest} to {most} tokens",
            }
        )
    return found


def _images(data: dict[str, Any]) -> str:
    """How many images were compared, and whether the tokenizer knew any of them."""
    seen = data.get("in_training")
    known = f", of which {seen} are in the training set too" if isinstance(seen, int) and seen else ""
    return f"{data['images']} held-out images{known}"


def _samples(numbers: Numbers, keep: int) -> list[dict[str, Any]]:
    return [
        {
            "label": "Samples | random tokens",
            "numbers": [numbers.pick(f"{name}_samples", keep), numbers.pick(f"{name}{RANDOM_TOKENS}", keep)],
            "between": "|",
            "hint": f"{name}{' to held-out images' if metric.uses_reference else ''} at K={keep}, "
            f"{numbers.protocol(f'{name}_samples', keep)['distance']['images']} of each; {metric.reading}",
        }
        for name, metric in numbers.set_metrics().items()
    ]


def _tokens(numbers: Numbers) -> list[dict[str, Any]]:
    usage, loss = numbers.protocol("codebook_usage"), numbers.protocol("prior_loss_bits")
    return [
        {
            "label": "Prior: loss | entropy, bits a token",
            "numbers": [numbers.pick("prior_loss_bits"), numbers.pick("token_entropy_bits")],
            "between": "|",
            "hint": f"{loss['images']} held-out images; below the entropy of the histograms = structure was learned",
        },
        {
            "label": STATISTICS["codebook_usage"].label,
            "numbers": [numbers.pick("codebook_usage")],
            "between": "",
            "hint": f"of {usage['vocabulary']:,} ids, over {usage['tokens_counted']:,} tokens",
        },
        {
            "label": "Bytes a token: stored | log2 of the vocabulary | entropy",
            "numbers": [numbers.pick(f"{name}_bytes_per_token") for name in ("column", "vocabulary", "entropy")],
            "between": "|",
            "hint": "the compressed column of ids; with keys, hashes and labels the files take "
            f"{numbers.pick('stored_bytes_per_token')['text']}",
        },
    ]

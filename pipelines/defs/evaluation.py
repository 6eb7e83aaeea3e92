"""What the models can do: reconstructions, samples, their distance to the held-out images, and the report."""

from collections.abc import Mapping

from flextok.metrics.base import Quantity
from pipelines.partitions import partition_key
from pipelines.recipe import Recipe
from pipelines.stage import Made, StageRun

MORE_TOKENS_ARE_CLOSER = "more_tokens_are_closer"
CLOSER_THAN_RANDOM = "closer_than_random_tokens"
NOT_WORSE_THAN_PROMOTED = "not_worse_than_promoted"
REPORT_IS_READABLE = "report_is_readable"


def split_of_conditions(recipe: Recipe) -> str:
    """The split whose conditions are drawn for: names of classes, or held-out captions for a prior that reads them."""
    return "val" if recipe.prior.model.condition == "text" else "train"


def partition_of_conditions(recipe: Recipe) -> tuple[str, ...]:
    """That split of the profile's corpus."""
    return (partition_key(recipe.corpus.name, split_of_conditions(recipe)),)


def make_the_reference(run: StageRun) -> Made:
    """Crops and features of the val set, as the metrics of sets compare them."""
    from flextok.evaluate.reference import make_reference

    recipe = run.recipe
    corpus_url, parent_url = run.latest("image_shards", "val"), run.workspace.url("reference")
    made = make_reference(corpus_url, parent_url, recipe.evaluation, recipe.image_size, recipe.compute)
    return Made(made.digest, made.url, {"dagster/row_count": made.images["images"]})


def reconstruct(run: StageRun) -> Made:
    """Held-out images at 1, 2, 4, ... tokens: pixel errors and distance for each count."""
    from flextok.evaluate.reconstruction import evaluate_reconstruction
    from flextok.metrics.base import IMAGE_METRICS

    made = evaluate_reconstruction(
        run.latest("tokenizer"),
        run.latest("image_shards", "val"),
        run.workspace.url("evaluation"),
        run.recipe.evaluation,
        run.recipe.compute,
        run.latest("reference"),
    )
    metric = IMAGE_METRICS[run.recipe.evaluation.metrics[0]]
    problems = {
        MORE_TOKENS_ARE_CLOSER: more_tokens_are_closer(metric, made.curve(metric.name)),
        NOT_WORSE_THAN_PROMOTED: not_worse_than_promoted(run, metric, metric.name, made.url),
    }
    return Made(made.digest, made.url, ends_of_curves(made.metrics), problems)


def draw_samples(run: StageRun) -> Made:
    """Images drawn from the prior, at several token counts."""
    from flextok.data.corpus.reader import Corpus
    from flextok.evaluate.config import SetComparisonConfig
    from flextok.evaluate.sampling import sample_images

    corpus = Corpus.open(run.latest("image_shards", split_of_conditions(run.recipe)))
    evaluation = run.recipe.evaluation
    by_text = run.recipe.prior.model.condition == "text"
    made = sample_images(
        run.latest("prior"),
        run.latest("tokenizer"),
        run.workspace.url("samples"),
        evaluation,
        class_names=corpus.classes,
        texts=corpus.index("text")["text"].drop_nulls().to_list() if by_text else None,
        compute=run.recipe.compute,
        sets=evaluation.part(SetComparisonConfig),
    )
    return Made(made.digest, made.url, {"dagster/row_count": made.num})


def measure_samples(run: StageRun) -> Made:
    """Distance of the samples to the val set (a FID only by the Inception extractor), beside random tokens."""
    from flextok.evaluate.generation import evaluate_generation
    from flextok.metrics.base import SET_METRICS

    config = run.recipe.evaluation
    made = evaluate_generation(
        run.latest("samples"),
        run.latest("image_shards", "val"),
        run.latest("tokenizer"),
        run.workspace.url("evaluation"),
        config,
        run.recipe.compute,
        run.latest("reference"),
    )
    metric = SET_METRICS[config.set_metrics[0]]
    name = metric.called(config.extractor)
    of_samples, of_random = made.curve(f"{name}_samples"), made.curve(f"{name}_random_tokens")
    problems = {
        CLOSER_THAN_RANDOM: closer_than_random(metric, of_samples, of_random),
        NOT_WORSE_THAN_PROMOTED: not_worse_than_promoted(run, metric, f"{name}_samples", made.url),
    }
    return Made(made.digest, made.url, ends_of_curves(made.metrics), problems)


def write_the_report(run: StageRun) -> Made:
    """One self-contained HTML page."""
    from flextok.evaluate.report import ReportInputs, write_report

    inputs = ReportInputs(
        reconstruction_url=run.latest("reconstructions"),
        generation_url=run.latest("fid"),
        samples_url=run.latest("samples"),
        tokenizer_url=run.latest("tokenizer"),
        prior_url=run.latest("prior"),
        train_tokens_url=run.latest("token_shards", "train"),
        val_tokens_url=run.latest("token_shards", "val"),
        latents_url=run.latest("latents"),
        train_url=run.latest("image_shards", "train"),
        val_url=run.latest("image_shards", "val"),
    )
    made = write_report(inputs, run.workspace.url("evaluation"), run.recipe.report, run.recipe.compute)
    problems = {REPORT_IS_READABLE: report_is_readable(made.html_path)}
    return Made(made.digest, made.url, {"html": run.workspace.relative(made.html_path)}, problems)


def more_tokens_are_closer(metric: Quantity, by_keep: Mapping[int, float]) -> str:
    """Compare the first metric of images at the fewest and the most tokens."""
    fewest, most = min(by_keep), max(by_keep)
    if fewest == most or _is_better(metric, by_keep[most], by_keep[fewest]):
        return ""
    return (
        f"{metric.name} is {by_keep[fewest]:.4g} at K={fewest} and {by_keep[most]:.4g} at K={most}: "
        "the tokenizer has not learned to use its tokens; train it longer"
    )


def closer_than_random(metric: Quantity, samples: Mapping[int, float], random: Mapping[int, float]) -> str:
    """Compare the first metric of sets of the samples with that of random tokens, at the most tokens."""
    most = max(samples)
    if _is_better(metric, samples[most], random[most]):
        return ""
    return (
        f"{metric.name} of samples at K={most} is {samples[most]:.4g}, that of random tokens {random[most]:.4g}: "
        "the prior has not learned; train it longer"
    )


def not_worse_than_promoted(run: StageRun, metric: Quantity, name: str, url: str) -> str:
    """Compare the number `name` at each K with that of the last promoted evaluation of this kind, where both were measured
    alike."""
    from flextok.aliases import last_promoted
    from flextok.errors import UsageError
    from flextok.evaluate.comparison import compare_evaluations
    from flextok.provenance import read_provenance

    promoted = last_promoted(run.workspace.url("evaluation"), read_provenance(url)["kind"])
    if promoted is None:
        return ""
    try:
        numbers = compare_evaluations([promoted, url])
    except UsageError:  # it is gone, or was measured otherwise
        return ""
    most, sign = run.recipe.automation.max_regression, -1 if metric.better == "higher" else 1
    worse = []
    for number in numbers:
        before, difference = number.values[0], number.differences[0]
        if number.name == name and before and difference and sign * difference.value > most * abs(before):
            share = sign * difference.value / abs(before)
            worse.append(f"{name} is {number.values[1]:.4g} at K={number.k}, {share:.1%} worse than {before:.4g}")
    return "; ".join([*worse, f"those of the promoted evaluation {promoted.rpartition('/')[2][:12]}"]) if worse else ""


def report_is_readable(url: str) -> str:
    """Read the page as a browser would: whole, with a heading, and needing nothing beside it."""
    from pipelines.html_page import problems_of

    return "; ".join(problems_of(url))


def _is_better(metric: Quantity, value: float, other: float) -> bool:
    return value < other if metric.better == "lower" else value > other


def ends_of_curves(metrics: list[dict]) -> dict[str, float]:
    """Each number at the fewest and at the most tokens, as `name@K`; numbers without K by their name. None of slices."""
    from flextok.evaluate.slices import SLICE

    numbers: dict[str, float] = {}
    names = dict.fromkeys(item["name"] for item in metrics if SLICE not in item["protocol"])
    for name in names:
        items = [item for item in metrics if item["name"] == name]
        counts = sorted(item["k"] for item in items if item["k"] is not None)
        for item in items:
            if item["k"] is None:
                numbers[name] = item["value"]
            elif item["k"] in (counts[0], counts[-1]):
                numbers[f"{name}@{item['k']}"] = item["value"]
    return numbers

"""What the models can do: reconstructions, samples, their distance to the held-out images, and the report."""

import dagster as dg

from pipelines.assets.stages import Stages, interruptible
from pipelines.checks import closer_than_random, more_tokens_are_closer
from pipelines.resources import Store


def evaluation_assets(stages: Stages) -> list[dg.AssetsDefinition]:
    """Reconstructions, samples, distances, report."""
    recipe = stages.recipe
    # A prior over classes needs their names; one that reads captions is asked for held-out ones.
    by_text = recipe.prior.model.condition == "text"
    conditions = "val" if by_text else "train"

    @dg.asset(
        **stages.options("reconstructions", "evaluation", {"pytorch"}),
        deps=[stages.dep("tokenizer"), stages.dep("image_shards", "val")],
    )
    @interruptible
    def reconstructions(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """Held-out images at 1, 2, 4, ... tokens: pixel errors and distance for each count."""
        from flextok.evaluate.reconstruction import evaluate_reconstruction

        made = evaluate_reconstruction(
            stages.latest(context, store, "tokenizer"),
            stages.latest(context, store, "image_shards", "val"),
            store.workspace.url("evaluation"),
            recipe.evaluation,
        )
        checks = [more_tokens_are_closer(made.curve("mae"))]
        return stages.result(store, "reconstructions", made.url, made.digest, ends_of_curves(made.metrics), checks)

    @dg.asset(
        **stages.options("samples", "evaluation", {"pytorch"}),
        deps=[stages.dep("prior"), stages.dep("tokenizer"), stages.dep("image_shards", conditions)],
    )
    @interruptible
    def samples(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """Images drawn from the prior, at several token counts."""
        from flextok.data.corpus.reader import Corpus
        from flextok.evaluate.sampling import sample_images

        corpus = Corpus.open(stages.latest(context, store, "image_shards", conditions))
        made = sample_images(
            stages.latest(context, store, "prior"),
            stages.latest(context, store, "tokenizer"),
            store.workspace.url("samples"),
            recipe.evaluation,
            class_names=corpus.classes,
            texts=corpus.index("text")["text"].drop_nulls().to_list() if by_text else None,
        )
        return stages.result(store, "samples", made.url, made.digest, {"dagster/row_count": made.num})

    @dg.asset(
        **stages.options("fid", "evaluation", {"pytorch"}),
        deps=[stages.dep("samples"), stages.dep("tokenizer"), stages.dep("image_shards", "val")],
    )
    @interruptible
    def fid(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """Distance of the samples to the val set (a FID only by the Inception extractor), beside random tokens."""
        from flextok.evaluate.features import distance_name
        from flextok.evaluate.generation import evaluate_generation

        made = evaluate_generation(
            stages.latest(context, store, "samples"),
            stages.latest(context, store, "image_shards", "val"),
            stages.latest(context, store, "tokenizer"),
            store.workspace.url("evaluation"),
            recipe.evaluation,
        )
        distance = distance_name(recipe.evaluation.extractor)
        checks = [closer_than_random(made.curve(f"{distance}_samples"), made.curve(f"{distance}_random_tokens"))]
        return stages.result(store, "fid", made.url, made.digest, ends_of_curves(made.metrics), checks)

    @dg.asset(
        **stages.options("report", "evaluation", {"html"}),
        deps=[
            *(stages.dep(name) for name in ("reconstructions", "fid", "samples", "latents", "tokenizer", "prior")),
            stages.dep("token_shards", "train", "val"),
            stages.dep("image_shards", "train", "val"),
        ],
    )
    @interruptible
    def report(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        """One self-contained HTML page."""
        from flextok.evaluate.report import ReportInputs, write_report

        made = write_report(
            ReportInputs(
                reconstruction_url=stages.latest(context, store, "reconstructions"),
                generation_url=stages.latest(context, store, "fid"),
                samples_url=stages.latest(context, store, "samples"),
                tokenizer_url=stages.latest(context, store, "tokenizer"),
                prior_url=stages.latest(context, store, "prior"),
                train_tokens_url=stages.latest(context, store, "token_shards", "train"),
                val_tokens_url=stages.latest(context, store, "token_shards", "val"),
                latents_url=stages.latest(context, store, "latents"),
                train_url=stages.latest(context, store, "image_shards", "train"),
                val_url=stages.latest(context, store, "image_shards", "val"),
            ),
            store.workspace.url("evaluation"),
            recipe.report,
        )
        return stages.result(store, "report", made.url, made.digest, {"html": store.workspace.relative(made.html_path)})

    return [reconstructions, samples, fid, report]


def ends_of_curves(metrics: list[dict]) -> dict[str, float]:
    """Each number at the fewest and at the most tokens, as `name@K`; numbers without K by their name."""
    numbers: dict[str, float] = {}
    names = dict.fromkeys(item["name"] for item in metrics)
    for name in names:
        items = [item for item in metrics if item["name"] == name]
        counts = sorted(item["k"] for item in items if item["k"] is not None)
        for item in items:
            if item["k"] is None:
                numbers[name] = item["value"]
            elif item["k"] in (counts[0], counts[-1]):
                numbers[f"{name}@{item['k']}"] = item["value"]
    return numbers

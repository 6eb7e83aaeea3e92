"""What a profile would do, without doing it: sizes come from models on the meta device, which hold no memory."""

from typing import Any

from flextok.data.config import CorpusConfig
from flextok.errors import UsageError
from pipelines.recipe import Recipe

ASSUMED_CLASSES = 1000
FLOAT_BYTES = 4
# Training holds weights, their average, the gradient and Adam's two moments.
TRAINING_COPIES = 5


def make_plan(recipe: Recipe, assets: list[str]) -> dict[str, Any]:
    """Assets, corpora, models, tokens and hardware of `recipe`; needs neither the data nor the memory."""
    models = _models(recipe)
    from flextok.data.tokens.schema import bits_of

    vocabulary, codebooks = models.pop("vocab_size"), models.pop("codebooks")
    registers = recipe.tokenizer.model.registers
    return {
        "profile": recipe.name,
        "assets": assets,
        "corpus": _corpus(recipe),
        "corpora": [{"name": other.name, "sources": _sources(other)} for other in recipe.tokens.corpora],
        "image_size": recipe.image_size,
        "models": models,
        "tokens": {
            "tokens_per_image": registers,
            "vocab_size": vocabulary,
            "bits_per_image": round(registers * codebooks * bits_of(vocabulary)),
            "bytes_per_image": registers * codebooks * (2 if 0 < vocabulary <= 1 << 16 else 4),
        },
        "training": {
            name: {"steps": part.train.steps, "batch_size": part.train.batch_size, "precision": part.train.precision}
            for name, part in (("latents", recipe.latents), ("tokenizer", recipe.tokenizer), ("prior", recipe.prior))
            if part.train is not None
        },
        "hardware": _hardware(recipe, models),
    }


def print_plan(plan: dict[str, Any]) -> None:
    """The plan for a person, on stdout."""
    corpus, tokens, hardware = plan["corpus"], plan["tokens"], plan["hardware"]
    print(f"profile      {plan['profile']}")
    print(f"assets       {' -> '.join(plan['assets'])}")
    for source in corpus["sources"]:
        there = "" if source["found"] else "  (not there: set corpus.source)"
        print(f"corpus       {corpus['name']} from {source['url']}, format {source['format']}{there}")
    for split, count in corpus["samples"].items():
        print(f"             {split}: {count:,} images")
    for other in plan["corpora"]:
        for source in other["sources"]:
            there = "" if source["found"] else "  (not there: set its source)"
            print(f"tokenized    {other['name']} from {source['url']}, format {source['format']}{there}")
    print(f"images       {plan['image_size']} x {plan['image_size']} pixels")
    for name, model in plan["models"].items():
        parts = ", ".join(f"{part} {_million(count)}" for part, count in model["parameters"].items() if part != "total")
        print(f"{name:12} {_million(model['parameters']['total'])} parameters ({parts})")
        origin = f", from {model['pretrained']}" if model.get("pretrained") else ""
        print(f"             checkpoint {_size(model['checkpoint_bytes'])}{origin}{model.get('note', '')}")
    print(
        f"tokens       {tokens['tokens_per_image']} an image, vocabulary {tokens['vocab_size']:,}, "
        f"{tokens['bits_per_image']} bits, {tokens['bytes_per_image']} bytes before compression"
    )
    for name, train in plan["training"].items():
        print(f"training     {name}: {train['steps']:,} steps of {train['batch_size']} images, {train['precision']}")
    for line in hardware["lines"]:
        print(f"hardware     {line}")


def _sources(corpus: CorpusConfig) -> list[dict[str, Any]]:
    from flextok.data.sources.catalog import check_sources

    sources = []
    for source in corpus.all_sources():
        try:
            check_sources(corpus.model_copy(update={"source": source.url, "sources": ()}))
            found = True
        except UsageError:
            found = False
        sources.append({"url": source.url, "format": source.format, "found": found})
    return sources


def _corpus(recipe: Recipe) -> dict[str, Any]:
    from flextok.data.config import SCENES

    sources = _sources(recipe.corpus)
    drawn = [source["url"] for source in sources] == [SCENES]
    samples = {split: recipe.corpus.scenes.samples(split) for split in ("train", "val")} if drawn else {}
    return {"name": recipe.corpus.name, "sources": sources, "samples": samples}


def _models(recipe: Recipe) -> dict[str, Any]:
    from flextok.data.config import SCENES
    from flextok.data.scenes import scene_classes
    from flextok.model.describe import parameter_counts
    from flextok.model.nn.outline import outlined
    from flextok.model.priors.config import PriorConfig
    from flextok.model.tokenizer import Tokenizer

    drawn = all(source.url == SCENES for source in recipe.corpus.all_sources())
    classes = len(scene_classes()) if drawn else ASSUMED_CLASSES
    with outlined():
        tokenizer = Tokenizer(recipe.tokenizer_config())
        architecture = PriorConfig(
            num_tokens=tokenizer.num_tokens,
            codebooks=tokenizer.codebooks,
            vocab_size=tokenizer.vocab_size,
            num_classes=classes if recipe.prior.model.condition == "class" else 0,
            model=recipe.prior.model,
        )
        prior = architecture.build()
    tokenizer_counts = parameter_counts(tokenizer.state_dict())
    latents = tokenizer_counts["latents"]
    prior_counts = parameter_counts(prior.state_dict())
    note = f", if there are {classes:,} classes" if recipe.prior.model.condition == "class" and not drawn else ""
    return {
        "latents": _model({"latents": latents, "total": latents}, pretrained=recipe.latents.pretrained),
        "tokenizer": _model(tokenizer_counts),
        "prior": _model(prior_counts, note=note),
        "vocab_size": tokenizer.vocab_size,
        "codebooks": tokenizer.codebooks,
    }


def _model(counts: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"parameters": counts, "checkpoint_bytes": counts["total"] * FLOAT_BYTES, **more}


def _hardware(recipe: Recipe, models: dict[str, Any]) -> dict[str, Any]:
    compute = recipe.compute
    where = {"local": "this machine", "auto": "the running Ray cluster"}.get(
        compute.address, f"Ray at {compute.address}"
    )
    gpus = compute.gpus_per_worker
    accelerators = f"{gpus:g} GPU{'s' * (gpus != 1)} each" if gpus else "CPUs only"
    workers = f"{compute.train_workers} training workers" if compute.train_workers else "training in this process"
    largest = max(model["parameters"]["total"] for model in models.values())
    memory = largest * FLOAT_BYTES * TRAINING_COPIES
    fewest, most = compute.tokenize_actors
    return {
        "address": compute.address,
        "train_workers": compute.train_workers,
        "gpus_per_worker": compute.gpus_per_worker,
        "tokenize_actors": [fewest, most],
        "worker_memory_bytes": memory,
        "lines": [
            f"{where}: {workers}, {accelerators}; {fewest} to {most} tokenizing actors",
            f"{_size(memory)} a worker for weights, average, gradient and optimizer, and room for activations",
        ],
    }


def _million(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,}"


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"

"""Whether stored tokens are what their pictures encode to."""

import random

import torch

from flextok import storage
from flextok.data.corpus.pictures import Pictures
from flextok.data.corpus.reader import Corpus
from flextok.data.rejects import Reject
from flextok.data.tokens import TokenStore
from flextok.errors import UsageError
from flextok.model.load import load_tokenizer
from flextok.provenance import read_provenance
from flextok.tokenize.config import TokenizeConfig
from flextok.tokenize.decoding import DecodeThreads
from flextok.tokenize.encoding import Encoder

# A latent on the edge between two ids may be rounded either way when it is computed in another batch.
ALLOWED_DIFFERENCE = 0.02
THREADS = 2


def verify_encoding(
    url: str,
    rows: int,
    corpus_url: str | None = None,
    tokenizer_url: str | None = None,
    device: str = "cpu",
    seed: int | None = None,
) -> list[str]:
    """Encode the source pictures of `rows` random rows of the store `url` anew; gives a line for each that differs.

    Corpus and tokenizer are found by the store's provenance unless given. A row differs when more than 2 % of its ids
    do. Raises UsageError when the corpus or tokenizer is not there or is another one.
    """
    store = TokenStore.open(url)
    corpus = Corpus.open(corpus_url or input_url(url, "corpus"))
    if corpus.digest != store.meta.corpus:
        raise UsageError(f"expected corpus {store.meta.corpus[:12]}, found {corpus.digest[:12]} at {corpus.url}")
    tokenizer = load_tokenizer(tokenizer_url or input_url(url, "tokenizer"), device, getattr(torch, store.meta.dtype))
    if tokenizer.digest != store.tokenizer:
        raise UsageError(
            f"expected tokenizer {store.tokenizer[:12]}, found {tokenizer.digest[:12]}; give its checkpoint"
        )
    chosen = sorted(random.Random(seed).sample(range(len(store)), min(rows, len(store))))
    stored = [store[row] for row in chosen]
    places = {key: place for place, key in enumerate(corpus.index("key")["key"])}
    missing = [row.key for row in stored if row.key not in places]
    if missing:
        return [f"{key}: not in the corpus" for key in missing]
    problems = []
    stored_pictures = Pictures(corpus)
    for view in dict.fromkeys(row.view for row in stored):
        config = TokenizeConfig.model_validate({"views": (view,)})
        encoder = Encoder(tokenizer, config, store.meta.batch_size or 1, DecodeThreads(THREADS))
        group = [row for row in stored if row.view == view]
        pictures = [stored_pictures[places[row.key]] for row in group]
        rejects: list[Reject] = []
        with encoder.batches(pictures, rejects) as batches:
            found = {
                columns["key"]: ids
                for batch in batches
                for columns, ids in zip(batch.columns, encoder.encode(batch), strict=True)
            }
        for row in group:
            if row.key not in found:
                problems.append(f"{row.key}: its picture does not decode any more")
                continue
            differing = (found[row.key][: len(row.ids)] != row.ids).mean()
            if differing > ALLOWED_DIFFERENCE:
                problems.append(f"{row.key}: {differing:.0%} of its ids differ from a fresh encoding")
    return problems


def input_url(url: str, kind: str) -> str:
    """Where the artifact at `url` says its input of this kind lies; raises UsageError when it names none."""
    for item in read_provenance(url)["inputs"]:
        if item["kind"] == kind:
            uri = item["uri"]
            return uri if "://" in uri or uri.startswith("/") else storage.absolute(storage.join(url, uri))
    raise UsageError(f"expected a {kind} among the inputs of {url}, found none; name it")

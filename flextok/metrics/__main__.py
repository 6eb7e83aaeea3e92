"""Prints docs/metrics.md: every registered metric. `python -m flextok.metrics > docs/metrics.md`."""

from collections.abc import Iterable

from flextok.metrics.base import CONTENT_METRICS, IMAGE_METRICS, SAMPLE_METRICS, SET_METRICS, STATISTICS, Quantity

OF_IMAGES = """\
Named in `evaluation.metrics`; a length policy with a threshold may use them too. Reconstructions have each by K and, as
`latents_<name>`, of the latents decoded directly. Results are means over images. `lpips_*`, `feature_similarity_dinov2` and
`feature_similarity_clip` look through weights that are given, and are checked by their hash; nothing is downloaded:

```yaml
evaluation:
  metrics: [mae, lpips_alex, feature_similarity_dinov2]
  weights:
    - {metric: lpips_alex, path: /weights/lpips_alex.safetensors, sha256: ...}   # made as flextok/metrics/lpips.py says
    - {metric: feature_similarity_dinov2, path: /models/dinov2-base, sha256: ...}  # of its model.safetensors
```"""
OF_SAMPLES = """\
Named in `evaluation.sample_metrics`: of each sample by what it was to show, as `<name>_samples` by K, which is how true samples
are to their condition after so many tokens, and as `<name>_originals` of held-out images, the ceiling. Results are means
over images. `clip_score` needs `evaluation.sample_weights`, as metrics of images need `evaluation.weights`: the folder of a
CLIP of transformers, and the hash of its model.safetensors."""
OF_CONTENT = """\
Of reconstructions by K, and as `latents_<name>`, by each of `evaluation.recognisers`, whose name ends theirs; of words also as
`<name>_originals`, the ceiling. Where the words and faces are, the samples' metadata says: `texts`, a list of `{text, box}`, and
`faces`, a list of boxes (left, top, right and bottom in pixels of the picture), as the JSON beside a picture or a WebDataset
sample brings them, and the corpus `drawn_words` has them. Words are read by `template`, which knows the font of `drawn_words`
alone and needs no download, or by `tesseract`, where that program and the package pytesseract are installed; faces are known by
`efficientnet_lite0`, a stand-in which was never taught faces, or by any vision network of transformers in a folder:

```yaml
evaluation:
  recognisers:
    - {kind: template}                 # text_accuracy_template, text_similarity_template
    - {kind: tesseract, language: eng}
    - {kind: transformers, name: my_faces, path: /models/faces, sha256: ...}  # face_similarity_my_faces
  slices: [source, glyph_px]
```

With `evaluation.slices` every metric of images and of contents has also `<name>_<column>_<value>` for the images of each source
of a corpus of several (`source`), or by what a field of the metadata says; where that is a number also the curve
`<name>_by_<column>` at each K."""
OF_SETS = """\
Named in `evaluation.set_metrics`. The number is called by the features it compares: `frechet` is `fid` for
torch-fidelity's Inception network only, else `fd_<extractor>`; `kernel_<n>` is
`kid_<n>` or `kd_<n>_<extractor>`, `spatial_frechet` is `sfid` or `sfd_<extractor>`, `inception_score` the same or
`is_<extractor>`; `<number>_samples` and `<number>_random_tokens` are those
of samples and of their baseline. `evaluation.perturbation: {shares: [0.5, 0.9], ranks: [16]}` gives
`pfid_<share>_<rank>` or `pfd_<share>_<rank>_<extractor>`, the Fréchet distance of reconstructions from the most tokens, each
exchanged with that probability for one of so many nearest codes, their mean `pfid_mean` or `pfd_mean_<extractor>`, and
curves over the share. With `evaluation.bootstrap: N` each has a standard error and a 95 % interval by N
resamples of its images, beside its value. With `evaluation.seeds: N` reconstructions have `<number>_seed_spread` by K, also of
metrics of images: the standard deviation over N seeds of the decoder's noise, whose values and mean stand in the protocol."""


def document() -> str:
    """The text of docs/metrics.md."""
    sections: tuple[tuple[str, str, Iterable[Quantity]], ...] = (
        ("Of each image against its original", OF_IMAGES, IMAGE_METRICS),
        ("Of a set of images against a reference set", OF_SETS, SET_METRICS),
        ("Of each sample by its condition", OF_SAMPLES, SAMPLE_METRICS),
        ("Of the words and faces of an image", OF_CONTENT, CONTENT_METRICS),
        ("Of token stores, priors and curves", "In every report.", STATISTICS),
    )
    parts = [
        "# Metrics\n\nMade by `python -m flextok.metrics`. Each number is stored with its protocol in `metrics.json`."
    ]
    parts += [f"## {title}\n\n{text}\n\n{_table(register)}" for title, text, register in sections]
    return "\n\n".join(parts) + "\n"


def _table(quantities: Iterable[Quantity]) -> str:
    lines = ["| name | unit | better | definition |", "| --- | --- | --- | --- |"]
    for each in sorted(quantities, key=lambda each: each.name):
        definition = each.definition.replace("|", r"\|")
        lines.append(f"| `{each.name}` | {each.unit or '-'} | {each.better or '-'} | {definition} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")

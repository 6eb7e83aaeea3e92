"""Words and faces: distances beside a shortest path, cosines beside scipy's, and drawn words read again through JPEG."""

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import lil_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cosine

from flextok.data.words import WordsConfig, draw_page
from flextok.errors import UsageError
from flextok.metrics.base import CONTENT_METRICS
from flextok.metrics.faces import face_similarity
from flextok.metrics.recognisers.base import RECOGNISERS, Recogniser
from flextok.metrics.text import edit_distance, text_accuracy, text_similarity

SIZES = (6, 8, 10, 13, 16)
PAGES = WordsConfig.model_validate({"glyph_px": SIZES})


def shortest_path(a: str, b: str) -> int:
    """From the beginnings of both words to their ends, by steps that cost 1 unless letters are equal (weight 1e-9 for 0)."""
    columns = len(b) + 1
    steps = lil_matrix(((len(a) + 1) * columns,) * 2)
    for i in range(len(a) + 1):
        for j in range(columns):
            if i < len(a):
                steps[i * columns + j, (i + 1) * columns + j] = 1
            if j < len(b):
                steps[i * columns + j, i * columns + j + 1] = 1
            if i < len(a) and j < len(b):
                steps[i * columns + j, (i + 1) * columns + j + 1] = 1e-9 if a[i] == b[j] else 1
    return round(dijkstra(steps.tocsr(), indices=0)[-1])


def test_the_edit_distance_is_a_shortest_path() -> None:
    random = np.random.default_rng(0)
    words = [
        "",
        "a",
        "kitten",
        "sitting",
        *("".join(random.choice(list("abc"), random.integers(9))) for _ in range(20)),
    ]
    for a in words:
        for b in words:
            assert edit_distance(a, b) == shortest_path(a, b), (a, b)
    assert edit_distance("kitten", "sitting") == 3


def test_words_are_right_or_more_or_less_alike() -> None:
    read, true = ["House", "house", "", "hose", "houses!"], ["House", "House", "House", "House", "House"]
    assert text_accuracy(read, true).tolist() == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(text_similarity(read, true), [1, 0.8, 0, 0.6, 1 - 3 / 7])
    assert text_similarity([""], [""]).tolist() == [1]


def test_the_likeness_of_faces_is_scipys_cosine() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 8))
    np.testing.assert_allclose(face_similarity(a, b), [1 - cosine(x, y) for x, y in zip(a, b, strict=True)])


def read_pages(reader: Recogniser, count: int, quality: int | None) -> dict[int, tuple[float, float]]:
    """By size, the mean accuracy and similarity of `count` pages of each, through JPEG of a quality where one is named."""
    found: dict[int, list[np.ndarray]] = {size: [] for size in SIZES}
    for index in range(count * len(SIZES)):
        page = draw_page(PAGES, "val", index)
        image = Image.open(io.BytesIO(page.png))
        if quality is not None:
            file = io.BytesIO()
            image.save(file, format="JPEG", quality=quality)
            image = Image.open(io.BytesIO(file.getvalue()))
        pixels, texts = np.asarray(image), page.metadata["texts"]
        true = [each["text"] for each in texts]
        read = reader([pixels[top:bottom, left:right] for left, top, right, bottom in (each["box"] for each in texts)])
        found[page.metadata["glyph_px"]].append(np.stack([text_accuracy(read, true), text_similarity(read, true)]))
    return {size: tuple(np.concatenate(each, axis=1).mean(axis=1)) for size, each in found.items()}  # type: ignore[misc]


def test_what_was_drawn_is_read() -> None:
    reader = RECOGNISERS["template"]().build()
    assert read_pages(reader, 12, None) == dict.fromkeys(SIZES, (1, 1))
    assert reader.record["font"].startswith("Aileron")


def test_small_letters_are_lost_first() -> None:
    reader = RECOGNISERS["template"]().build()
    by_quality = {quality: read_pages(reader, 12, quality) for quality in (60, 25, 15, 8)}
    for accuracies in zip(*(found.values() for found in by_quality.values()), strict=True):
        assert [each[0] for each in accuracies] == sorted((each[0] for each in accuracies), reverse=True)  # by quality
    for quality in (25, 15, 8):
        accuracy = {size: found[0] for size, found in by_quality[quality].items()}
        assert max(accuracy[6], accuracy[8]) < accuracy[10] <= accuracy[13] <= accuracy[16] + 0.05
        assert all(similarity >= right for right, similarity in by_quality[quality].values())
    assert by_quality[8][16][0] > 0.7
    assert by_quality[8][6][0] < 0.2


def test_templates_are_laid_over_words_of_other_sizes() -> None:
    """Of pictures that were enlarged, as a crop may be: most letters, but fewer than at the size that they were drawn at."""
    reader, alike = RECOGNISERS["template"]().build(), []
    for index in (2, 3, 7, 8):
        page = draw_page(PAGES, "val", index)
        image = Image.open(io.BytesIO(page.png))
        large = np.asarray(image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC))
        for each in page.metadata["texts"]:
            left, top, right, bottom = (2 * place for place in each["box"])
            alike += [text_similarity(reader([large[top:bottom, left:right]]), [each["text"]])[0]]
    assert np.mean(alike) > 0.7


def test_an_empty_region_says_nothing() -> None:
    assert RECOGNISERS["template"]().build()([np.full((16, 40, 3), 90, np.uint8), np.zeros((1, 1, 3), np.uint8)]) == [
        "",
        "",
    ]


def tesseract() -> Recogniser:
    try:
        return RECOGNISERS["tesseract"]().build()
    except UsageError as error:
        pytest.skip(str(error))


def test_tesseract_reads_what_was_drawn_and_less_of_it_when_it_is_small() -> None:
    """Where the program and pytesseract are installed."""
    reader = tesseract()
    whole, spoilt = read_pages(reader, 2, None), read_pages(reader, 2, 10)
    assert whole[16][1] > 0.9 and np.mean([each[1] for each in whole.values()]) > 0.85
    assert np.mean([each[0] for each in spoilt.values()]) < np.mean([each[0] for each in whole.values()])
    assert spoilt[6][1] < spoilt[16][1]
    assert reader.record["version"][0].isdecimal() and reader.record["language"] == "eng"


def test_tesseract_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytesseract", None)
    with pytest.raises(
        UsageError, match="expected the package pytesseract for tesseract, found none; run `pip install"
    ):
        RECOGNISERS["tesseract"]().build()
    monkeypatch.undo()
    pytest.importorskip("pytesseract")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="expected the program tesseract on the PATH"):
        RECOGNISERS["tesseract"]().build()


def test_a_language_that_tesseract_lacks_is_told() -> None:
    tesseract()
    with pytest.raises(UsageError, match=r"expected tesseract's data for xyz, found .*eng"):
        RECOGNISERS["tesseract"](language="eng+xyz").build()


def test_faces_by_a_folder_are_those_of_its_network(tmp_path: Path) -> None:
    import torch

    from flextok.runtime import torchvision_compat  # noqa: F401

    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    network = transformers.ViTModel(transformers.ViTConfig(**small, intermediate_size=32)).eval()
    prepare = transformers.ViTImageProcessor(size={"height": 28, "width": 28})
    network.save_pretrained(tmp_path)
    prepare.save_pretrained(tmp_path)
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    settings = RECOGNISERS["transformers"](name="toy_face", path=str(tmp_path), sha256=sha256)
    recogniser, random = settings.build(), np.random.default_rng(0)
    regions = [random.integers(0, 256, (side, 30, 3), dtype=np.uint8) for side in (30, 41)]
    with torch.inference_mode():
        expected = [network(**prepare(images=[each], return_tensors="pt")).pooler_output[0].numpy() for each in regions]
    np.testing.assert_allclose(recogniser(regions), expected, rtol=1e-4, atol=1e-6)
    assert settings.called == "toy_face" and recogniser.record["weights_sha256"] == sha256
    assert settings.content() == {"kind": "transformers", "name": "toy_face", "sha256": sha256}
    with pytest.raises(UsageError, match="sha256"):
        settings.model_copy(update={"sha256": "0" * 64}).build()


def test_metrics_of_content_are_found_by_name() -> None:
    assert {"text_accuracy", "text_similarity", "face_similarity"} <= set(CONTENT_METRICS.names())
    assert {"template", "tesseract", "efficientnet_lite0", "transformers"} <= set(RECOGNISERS.names())

"""The server over real HTTP on loopback, in threads of this process, with models of a few weights."""

import asyncio
import base64
import collections
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import torch
from http_client import Answer, asking, generate, get, request_bytes, send
from serve_models import Held, L, Serving, make_prior, make_tokenizer, serving

from flextok.bench.serve import measure
from flextok.data.images import to_png, to_uint8
from flextok.model.tokenizer import Tokenizer
from flextok.serve import engine
from flextok.serve.request import BODY_BYTES

T = TypeVar("T")
HUNDREDS = {"batch": 64, "queue": 2000}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="module")
def classes(tokenizer: Tokenizer) -> Iterator[Serving]:
    with serving(make_prior("class"), tokenizer, **HUNDREDS) as server:
        yield server


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


async def at_once(url: str, asked: list[dict[str, Any]]) -> list[Answer]:
    return await asyncio.gather(*(generate(url, **values) for values in asked))


def picture(classes: Serving, **values: Any) -> bytes:
    """The image as the library makes it, alone."""
    seed, number = values.get("seed", 0), values.get("id", 0)
    ids = classes.prior.generate(
        labels=[values["label"]],
        seed=seed,
        sample_ids=[number],
        keep=values.get("keep"),
        guidance=values.get("guidance", 1.0),
    )
    return to_png(to_uint8(classes.tokenizer.detokenize(ids, seed=seed, sample_ids=[number]))[0])


def test_an_image_depends_on_what_is_asked_and_not_on_who_else_asks(classes: Serving) -> None:
    """Of other classes, seeds, lengths and guidance, as pictures and as tokens."""
    asked = [
        {"label": row % 3, "seed": row % 5, "id": row, "keep": 1 + row % L, "guidance": (1.0, 2.5)[row % 2]}
        for row in range(40)
    ]
    for row, values in enumerate(asked):
        values["format"] = ("png", "tokens")[row % 3 == 0]
    answers = run(at_once(classes.url, asked))
    assert {answer.status for answer in answers} == {200}
    for values, answer in zip(asked, answers, strict=True):
        if values["format"] == "png":
            assert answer.headers["content-type"] == "image/png" and answer.body == picture(classes, **values)
        else:
            ids = classes.prior.generate(
                labels=[values["label"]], seed=values["seed"], sample_ids=[values["id"]], guidance=values["guidance"]
            )
            assert answer.json() == {"keep": values["keep"], "tokens": ids[0, : values["keep"]].tolist()}
    assert classes.sample("flextok_batch_images_count") < len(asked) / 2  # many at once


def test_previews_are_the_beginnings_of_the_image(classes: Serving) -> None:
    asked = {"label": 1, "seed": 3, "keep": 6}
    answer = run(generate(classes.url, **asked, stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [(name, value["keep"]) for name, value in answer.events] == [
        ("preview", 1), ("preview", 2), ("preview", 4), ("done", 6),
    ]  # fmt: skip
    whole = run(generate(classes.url, **asked, format="tokens")).json()["tokens"]
    assert all(value["tokens"] == whole[: value["keep"]] for _, value in answer.events)
    for _, value in answer.events:
        assert base64.b64decode(value["png"]) == picture(classes, **{**asked, "keep": value["keep"]})
    tokens = run(generate(classes.url, **asked, stream=True, format="tokens")).events
    assert [value["tokens"] for _, value in tokens] == [whole[:1], whole[:2], whole[:4], whole]
    assert not any("png" in value for _, value in tokens)


def test_a_thousand_at_once_are_all_served(classes: Serving) -> None:
    asked = [{"label": row % 3, "id": row, "format": "tokens"} for row in range(1000)]
    answers = run(at_once(classes.url, asked))
    assert collections.Counter(answer.status for answer in answers) == {200: 1000}
    expected = classes.prior.generate(labels=[row % 3 for row in range(1000)]).tolist()
    assert sum(answer.json()["tokens"] == ids for answer, ids in zip(answers, expected, strict=True)) >= 998


def test_more_than_may_wait_are_told_when_to_come_again(tokenizer: Tokenizer) -> None:
    with serving(make_prior("class"), tokenizer, batch=4, queue=8) as server:
        answers = run(at_once(server.url, [{"label": 0, "id": row} for row in range(300)]))
        found = collections.Counter(answer.status for answer in answers)
        assert set(found) == {200, 429} and found[200] >= 8
        refused = next(answer for answer in answers if answer.status == 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 60 and "waiting" in refused.json()["error"]
        assert run(generate(server.url, label=0)).status == 200
        assert server.sample("flextok_requests_total", path="/generate", status="429") == found[429]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "expected a 'label' for this prior, found none"),
        ({"label": 3}, "expected 'label' within 0..2, found 3"),
        ({"label": -1}, "'label'"),
        ({"label": "cat"}, "'label'"),
        ({"label": 0, "text": "a cat"}, "expected no 'text' for this prior, found one"),
        ({"label": 0, "keep": L + 1}, f"expected 'keep' within 1..{L}, found {L + 1}"),
        ({"label": 0, "keep": 0}, "'keep'"),
        ({"label": 0, "seed": 2**63}, "'seed'"),
        ({"label": 0, "guidance": 1e9}, "'guidance'"),
        ({"label": 0, "temperature": 1e-9}, "'temperature': expected 0, or 0.01 to 100"),
        ({"label": 0, "top_p": 0}, "'top_p'"),
        ({"label": 0, "format": "exe"}, "'format'"),
        ({"label": 0, "steps": 10**9}, "unknown key 'steps'"),
        ({"label": 0, "a\nb": 1}, "unknown key 'a b'"),
        ({"label": 0, "\ud800": 1}, "valid string"),
        ({"label": 0, "guidance_schedule": {"kind": "cosin"}}, "nearest is 'cosine'"),
        ({"label": 0, "format": "x" * 9999}, "'format'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(classes: Serving, values: dict[str, Any], line: str) -> None:
    answer = run(generate(classes.url, **values))
    error = answer.json()["error"]
    assert answer.status == 422 and line in error and len(error) < 320 and "\n" not in error


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (request_bytes("POST", "/generate", b"{", Content_Type="application/json"), 400),
        (request_bytes("POST", "/generate", b"[1]", Content_Type="application/json"), 400),
        (request_bytes("POST", "/generate", b"[" * 60_000, Content_Type="application/json"), 400),
        (request_bytes("POST", "/generate", b'{"guidance": NaN}', Content_Type="application/json"), 400),
        (request_bytes("POST", "/generate", b"\xff\xfe", Content_Type="application/json"), 400),
        (request_bytes("POST", "/generate", b"{}", Content_Type="text/plain"), 415),
        (request_bytes("POST", "/generate", b"x" * (BODY_BYTES + 1), Content_Type="application/json"), 413),
        (request_bytes("POST", "/generate", b"x" * (12 * BODY_BYTES), Content_Type="application/json"), 413),
        (
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 5 + b"0\r\n\r\n",
            413,
        ),
        (request_bytes("GET", "/generate"), 405),
        (request_bytes("GET", "/nowhere"), 404),
        (request_bytes("GET", "/health", Host="evil.example"), 400),
    ],
)
def test_what_is_no_request_has_its_status(classes: Serving, content: bytes, status: int) -> None:
    assert run(send(classes.url, content)).status == status
    assert run(generate(classes.url, label=0, format="tokens")).status == 200


def test_a_client_that_goes_frees_its_place(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits, and while its image is drawn; one that reads previews too."""
    monkeypatch.setattr(engine, "LOOK_EVERY", 3)

    async def come_and_go(server: Serving, held: Held) -> None:
        writers = []
        for row in range(5):  # the first is being drawn, the others wait
            _, writer = await asyncio.open_connection(*server.address)
            writer.write(asking(label=0, stream=row % 2 == 1))
            writers.append(writer)
            await server.until(lambda row=row: server.engine.waiting == row and held.reached())
        assert (await generate(server.url, label=0)).status == 429
        for writer in writers:
            writer.close()
        await server.until(lambda: server.sample("flextok_clients_gone_total") == 5)
        assert server.engine.waiting == 0
        held.release()
        assert (await generate(server.url, label=0)).status == 200
        assert held.positions == 3 + L  # those until it looked, and an image

    with serving(make_prior("class"), tokenizer, batch=1, queue=4) as server, server.drawing_held() as held:
        run(come_and_go(server, held))


def test_logits_that_are_no_numbers_are_an_error_and_the_next_is_served(tokenizer: Tokenizer) -> None:
    prior = make_prior("class")
    with serving(prior, tokenizer, **HUNDREDS) as server:
        weight = prior.classes.weight  # of one class only: those drawn with it are not harmed
        with torch.no_grad():
            kept, weight[1] = weight[1].clone(), torch.nan
        asked = [{"label": row % 3, "temperature": temperature} for row in range(9) for temperature in (0, 1)]
        answers = run(at_once(server.url, asked))
        assert [answer.status for answer in answers] == [500 if values["label"] == 1 else 200 for values in asked]
        line = "expected finite logits, found NaN or infinity; the prior is damaged, or the temperature too low"
        assert answers[2].json() == {"error": line}
        streamed = run(generate(server.url, label=1, stream=True))
        assert streamed.status == 200 and streamed.events == [("error", {"error": line})]
        with torch.no_grad():
            weight[1] = kept
        assert run(generate(server.url, label=1)).status == 200


@pytest.mark.parametrize("text", ["", "\N{GRINNING FACE} \N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}", "a" * 4000])
def test_captions_of_any_kind_are_drawn(captions: Serving, text: str) -> None:
    answer = run(generate(captions.url, text=text, format="tokens", guidance=2))
    assert answer.json()["tokens"] == captions.prior.generate(text=[text], guidance=2.0)[0].tolist()


@pytest.fixture(scope="module")
def captions(tokenizer: Tokenizer) -> Iterator[Serving]:
    with serving(make_prior("text"), tokenizer, **HUNDREDS) as server:
        yield server


def test_captions_that_are_none_are_refused(captions: Serving) -> None:
    for values, line in (
        ({}, "expected a 'text'"),
        ({"label": 0, "text": ""}, "expected no 'label'"),
        ({"text": "word " * 10_000}, "'text': String should have at most 4000"),
        ({"text": "\ud800"}, "'text': Input should be a valid string"),
    ):
        answer = run(generate(captions.url, **values))
        assert answer.status == 422 and line in answer.json()["error"] and len(answer.body) < 400


def test_health_metrics_and_page(classes: Serving) -> None:
    health = run(get(classes.url, "/health"))
    assert health.status == 200
    assert health.json() == {
        "status": "ok", "prior": classes.prior.digest, "tokenizer": classes.tokenizer.digest,
        "condition": "class", "classes": 3, "positions": L, "waiting": 0,
    }  # fmt: skip
    assert run(generate(classes.url, label=0)).status == 200
    told = run(get(classes.url, "/metrics"))
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = told.body.decode().splitlines()
    assert "flextok_waiting 0.0" in lines and any(line.startswith("flextok_generate_seconds_bucket") for line in lines)
    assert any(line.startswith('flextok_requests_total{path="/generate",status="200"}') for line in lines)


def test_the_page_needs_nothing_from_elsewhere(classes: Serving) -> None:
    page = run(get(classes.url, "/"))
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    named = [part.split('"')[0] for part in page.body.decode().replace('src="', 'href="').split('href="')[1:]]
    assert named == ["/page.css", "/page.js"]
    for path in named:
        answer = run(get(classes.url, path))
        assert answer.status == 200 and b"://" not in answer.body and b"innerHTML" not in answer.body
    assert b"style=" not in page.body and b"onclick" not in page.body


@pytest.mark.parametrize("form", ["tokens", "png"])
def test_the_benchmark_asks_and_is_answered(tokenizer: Tokenizer, form: str) -> None:
    found = measure(make_prior("class"), tokenizer, form, images=6, batch=2, rounds=1)
    assert min(found.values()) > 0 and found["p50"] <= found["p99"]


def test_at_the_end_nobody_is_left_waiting(tokenizer: Tokenizer) -> None:
    async def ask_and_end() -> list[Answer]:
        with serving(make_prior("class"), tokenizer, batch=1, queue=9) as server, server.drawing_held() as held:
            asked = [asyncio.ensure_future(generate(server.url, label=0, id=row)) for row in range(4)]
            await server.until(lambda: server.engine.waiting == 3 and held.reached())
            ending = asyncio.ensure_future(asyncio.to_thread(server.engine.stop, 10))
            await server.until(lambda: not server.engine.is_alive)
            assert (await get(server.url, "/health")).status == 503
            assert (await generate(server.url, label=0)).status == 503
            held.release()
            assert await ending
            return await asyncio.gather(*asked)

    assert [answer.status for answer in run(ask_and_end())] == [503] * 4

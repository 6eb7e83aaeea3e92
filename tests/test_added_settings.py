"""Settings that came later keep the digests of what was made before them; sections are parts of a whole."""

import pickle

import pytest

from flextok.config import ADDED, Added, Config, Operational, parse_config
from flextok.digests import digest_of
from flextok.errors import UsageError
from flextok.metrics import IMAGE_METRICS
from flextok.registry import RoomRegister


class Brush(Config):
    width: int = 3


class Paint(Config):
    colour: str = "red"
    varnish: Added[tuple[str, ...]] = ("matt",)
    workers: Operational[int] = 1


class Painting(Paint, Brush):
    title: str = ""


def test_an_added_setting_is_silent_until_it_is_used():
    before = {"colour": "red"}  # recorded when there was no varnish
    assert digest_of(Paint().content()) == digest_of(before)
    assert digest_of(parse_config(Paint, before, "record").content()) == digest_of(before)
    assert Paint(varnish=("gloss",)).content() == {**before, "varnish": ["gloss"]}
    assert Paint().model_dump(mode="json")["varnish"] == ["matt"]
    assert pickle.loads(pickle.dumps(ADDED)) is ADDED


def test_a_part_has_its_own_settings_only():
    whole = Painting(colour="blue", width=5, title="sea", workers=3)
    assert whole.part(Brush) == Brush(width=5)
    assert whole.part(Paint) == Paint(colour="blue", workers=3)
    with pytest.raises(AttributeError):
        whole.part(Brush).colour  # type: ignore[attr-defined]  # noqa: B018


def test_a_room_is_looked_through_for_its_members():
    room: RoomRegister = RoomRegister("metric of images", home="flextok.metrics")
    assert room.names() == []  # its modules register elsewhere, and are no members themselves
    assert IMAGE_METRICS["psnr"].unit == "dB"
    with pytest.raises(UsageError, match="nearest is 'psnr'"):
        IMAGE_METRICS["pnsr"]

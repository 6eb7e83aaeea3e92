"""Strict settings: what decides a result, registers as types of fields, and what is said of a mistake."""

from collections.abc import Iterator
from typing import Annotated, Literal

import pytest
from pydantic import Field

from flextok.config import Config, Operational, parse_config
from flextok.errors import UsageError
from flextok.registry import ConfigRegister, Register

SHAPES = ConfigRegister("shape")


class Shape(Config):
    kind: str


@SHAPES.register
class Round(Shape):
    kind: Literal["round"] = "round"
    radius: int = Field(1, gt=0)
    log_every: Operational[int] = 5


class Painting(Config):
    shape: Annotated[Shape, SHAPES] = Round()
    many: tuple[Round, ...] = ()
    colour: str = "red"
    workers: Operational[int] = 1


@pytest.fixture
def square() -> Iterator[type[Shape]]:
    """A member that comes after the settings which may name it."""

    @SHAPES.register
    class Square(Shape):
        kind: Literal["square"] = "square"
        side: float = 2.0

    yield Square
    SHAPES.remove("square")


def test_content_leaves_out_what_decides_nothing_at_any_depth() -> None:
    painting = Painting(many=(Round(radius=2, log_every=9),), workers=7)
    assert painting.content() == {
        "shape": {"kind": "round", "radius": 1},
        "many": [{"kind": "round", "radius": 2}],
        "colour": "red",
    }
    assert painting.model_dump(mode="json")["many"][0]["log_every"] == 9


def test_a_later_member_is_read_written_and_counted(square: type[Shape]) -> None:
    painting = parse_config(Painting, {"shape": {"kind": "square", "side": 3}}, "test")
    assert painting.shape == square(side=3.0)  # type: ignore[call-arg]
    assert parse_config(Painting, painting.model_dump(mode="json"), "test") == painting
    assert painting.content()["shape"] == {"kind": "square", "side": 3.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shape": {"kind": "rond"}}, "'shape': expected a shape among round, found 'rond'; the nearest is 'round'"),
        ({"shape": {"radius": 2}}, "'shape': expected 'kind', a shape among round"),
        (
            {"shape": {"kind": "round", "radios": 2}},
            "unknown key 'shape.radios'; the nearest known key is 'shape.radius'",
        ),
        ({"shape": {"kind": "round", "radius": 0}}, "'shape.radius': Input should be greater than 0, found 0"),
        ({"shape": "round"}, "'shape': Input should be a mapping with 'kind', found 'round'"),
        ({"colr": "red"}, "unknown key 'colr'; the nearest known key is 'colour'"),
    ],
)
def test_a_mistake_names_its_place_and_the_nearest_right_name(values: dict, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config(Painting, values, "profile")
    assert said in str(error.value)


def test_a_name_is_given_once_and_an_unknown_one_names_the_nearest() -> None:
    tools: Register[int] = Register("tool")
    tools.add("hammer", 1)
    with pytest.raises(ValueError, match="second one"):
        tools.add("hammer", 2)
    with pytest.raises(UsageError, match="nearest is 'hammer'"):
        tools["hamer"]

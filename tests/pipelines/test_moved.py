"""Keys that have moved are understood where they used to be."""

import logging
from typing import Any

import pytest
import yaml

from flextok.config import Config, has_key, parse_config
from flextok.errors import UsageError
from pipelines.moved import MOVED, move_keys
from pipelines.recipe import PROFILES, Recipe, load_recipe


class Model(Config):
    width: int = 1


class Draws(Config):
    sigma: str = "uniform"


class Train(Config):
    keep_mode: str = "uniform"
    condition_dropout: float = 0.1
    decoder: Draws = Draws()


class Tokenizer(Config):
    model: Model = Model()
    train: Train = Train()


class Moved(Config):
    tokenizer: Tokenizer = Tokenizer()


def test_values_go_to_the_new_keys():
    values: dict[str, Any] = {"tokenizer": {"model": {"width": 2, "keep_mode": "pow2", "sigma": "x"}}}
    assert move_keys(values, Moved) == [
        ("tokenizer.model.keep_mode", "tokenizer.train.keep_mode"),
        ("tokenizer.model.sigma", "tokenizer.train.decoder.sigma"),
    ]
    assert values == {"tokenizer": {"model": {"width": 2}, "train": {"keep_mode": "pow2", "decoder": {"sigma": "x"}}}}
    assert move_keys(values, Moved) == []
    assert parse_config(Moved, values, "test").tokenizer.train.decoder.sigma == "x"


def test_a_value_that_the_new_key_has_is_kept_unless_told():
    def both() -> dict[str, Any]:
        return {"tokenizer": {"model": {"keep_mode": "pow2"}, "train": {"keep_mode": "uniform"}}}

    kept, replaced = both(), both()
    assert move_keys(kept, Moved) == [] and kept == both()
    with pytest.raises(UsageError, match=r"unknown key 'tokenizer\.model\.keep_mode'"):
        parse_config(Moved, kept, "test")
    assert move_keys(replaced, Moved, replace=True) and replaced["tokenizer"]["train"] == {"keep_mode": "pow2"}


@pytest.mark.parametrize("values", [{}, {"tokenizer": None}, {"tokenizer": {"model": 3}}, {"tokenizer": []}])
def test_what_is_no_mapping_is_left_alone(values: dict):
    assert move_keys(values, Moved) == []


def test_every_moved_key_is_in_one_of_its_places():
    for old, new in MOVED.items():
        assert has_key(Recipe, old) != has_key(Recipe, new), (old, new)


def test_an_old_profile_gives_the_same_recipe_and_says_what_moved(tmp_path, caplog):
    values = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
    values["tokenizer"]["model"] |= {"keep_mode": "pow2", "pure_noise_steps": 7}
    for name in ("keep_mode", "decoder"):
        values["tokenizer"]["train"].pop(name, None)
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(values))
    caplog.set_level(logging.WARNING)
    new = [
        key if has_key(Recipe, key) else MOVED[key]
        for key in ("tokenizer.model.keep_mode", "tokenizer.model.pure_noise_steps")
    ]
    expected = {"keep_mode": "pow2", "pure_noise_steps": 7}
    found: Any = load_recipe(str(path))
    for key, value in zip(new, expected.values(), strict=True):
        leaf = found
        for name in key.split("."):
            leaf = getattr(leaf, name)
        assert leaf == value
    said = [f"{old} is {MOVED[old]} now" for old in MOVED if not has_key(Recipe, old)]
    assert all(any(line.endswith(text) for text in said) for line in caplog.messages)


def test_set_understands_the_old_key_and_overrules_the_profile(caplog):
    by_old = load_recipe("smoke", ["tokenizer.model.keep_mode=pow2", "prior.model.dropout=0.25"])
    new = [
        MOVED[key] if not has_key(Recipe, key) else key for key in ("tokenizer.model.keep_mode", "prior.model.dropout")
    ]
    assert by_old == load_recipe("smoke", [f"{new[0]}=pow2", f"{new[1]}=0.25"])
    assert by_old != load_recipe("smoke")

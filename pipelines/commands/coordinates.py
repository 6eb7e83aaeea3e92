"""`flextok coordinate-check`: whether steps of the optimizer move a profile's models as far at all widths."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flextok.errors import FlextokError, UsageError
from pipelines.commands.options import PIPE_WIDTH, AsJson, Debug, Profile, Sets, print_json
from pipelines.plan import ASSUMED_CLASSES
from pipelines.recipe import DEFAULT_PROFILE, Recipe, load_recipe

if TYPE_CHECKING:
    from flextok.train.config import PriorTrainConfig, TokenizerTrainConfig
    from flextok.train.coordinates import Begin, Coordinates


class Part(StrEnum):
    """What is trained with muP."""

    tokenizer = "tokenizer"
    prior = "prior"


def coordinate_check(
    part: Annotated[Part, typer.Argument(help="Which of the profile's models.")],
    profile: Profile = DEFAULT_PROFILE,
    sets: Sets = [],  # noqa: B006 - typer reads it, nothing writes it
    width: Annotated[
        list[int], typer.Option("--width", min=4, help="A width of the trunks; repeat it; default 64, 128, 256.")
    ] = [64, 128, 256],  # noqa: B006
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps on one batch of noise.")] = 6,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Models of each width, whose mean counts.")] = 2,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train the profile's model for some steps at several widths, by muP and by the standard parametrization.

    The base width is that of the profile, or else the smallest one. Exit code 1 where muP does not hold.
    """
    from flextok.train.coordinates import coordinate_check as check

    recipe = load_recipe(profile, sets)
    _check_widths(recipe, part, width)
    train = recipe.tokenizer.train if part is Part.tokenizer else recipe.prior.train
    mup = train.model_copy(update={"mup_base_width": train.mup_base_width or min(width)})
    standard = train.model_copy(update={"mup_base_width": None})
    by_mup, by_standard = (check(_begin(recipe, own), own.optimizer, width, steps, seeds) for own in (mup, standard))
    if as_json:
        print_json({"mup": list(map(vars, by_mup)), "standard": list(map(vars, by_standard))})
    else:
        _print_table(f"muP, base width {mup.mup_base_width}", by_mup)
        _print_table("standard", by_standard)
    if failing := [each.module for each in by_mup if not each.holds]:
        raise FlextokError(
            f"expected steps to move all modules as far at all widths with muP, found otherwise in {', '.join(failing)}; "
            f"lower {part}.train.optimizer.lr, or raise --seeds"
        )


def _check_widths(recipe: Recipe, part: Part, widths: list[int]) -> None:
    trunks = recipe.tokenizer.model.trunks().values() if part is Part.tokenizer else (recipe.prior.model,)
    for trunk in trunks:
        head_dim = getattr(trunk, "head_dim", 1)
        for width in widths:
            if width % head_dim or width % 4:
                raise UsageError(f"expected --width as multiples of 4 and of head_dim {head_dim}, found {width}")


def _begin(recipe: Recipe, train: "TokenizerTrainConfig | PriorTrainConfig") -> "Begin":
    from flextok.model.nn.outline import outlined
    from flextok.model.priors.config import PriorConfig
    from flextok.model.tokenizer import Tokenizer
    from flextok.train.config import PriorTrainConfig
    from flextok.train.coordinates import priors, tokenizers

    if not isinstance(train, PriorTrainConfig):
        return tokenizers(recipe.tokenizer_config(), train)
    with outlined():
        tokenizer = Tokenizer(recipe.tokenizer_config())
    sizes = {name: getattr(tokenizer, name) for name in ("num_tokens", "codebooks", "vocab_size")}
    classes = ASSUMED_CLASSES if recipe.prior.model.condition == "class" else 0
    return priors(PriorConfig(model=recipe.prior.model, num_classes=classes, **sizes), train)


def _print_table(title: str, coordinates: "list[Coordinates]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("mean |change| of")
    for heading in (*map(str, coordinates[0].widths), "grows by width^", "at first by width^"):
        table.add_column(heading, justify="right")
    for each in coordinates:
        powers = ["" if power is None else f"{power:+.2f}" for power in (each.change_power, each.size_power)]
        table.add_row(Text(each.module), *(f"{change:.3g}" for change in each.changes), *powers)
    console = Console()
    Console(width=None if console.is_terminal else PIPE_WIDTH).print(table)

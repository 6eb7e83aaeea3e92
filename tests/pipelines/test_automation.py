"""What the automation condition starts after which event: data decides, not the mere fact that something ran."""

import dagster as dg
import pytest

from pipelines.automation import refresh_when_inputs_change
from pipelines.definitions import build_definitions
from pipelines.recipe import load_recipe

NAMES = ("source", "model", "report")


class World:
    """source -> model -> report under the condition, with the automation's cursor between ticks."""

    def __init__(self) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.code = dict.fromkeys(NAMES, "1")
        self.data = dict.fromkeys(NAMES, "1")
        self.cursor = None

    def definitions(self) -> dg.Definitions:
        def make(name: str, deps: list[str]) -> dg.AssetsDefinition:
            @dg.asset(
                name=name, deps=deps, code_version=self.code[name], automation_condition=refresh_when_inputs_change
            )
            def body() -> dg.MaterializeResult:
                return dg.MaterializeResult(data_version=dg.DataVersion(self.data[name]))

            return body

        return dg.Definitions(assets=[make("source", []), make("model", ["source"]), make("report", ["model"])])

    def build(self, *names: str) -> None:
        job = self.definitions().resolve_implicit_global_asset_job_def()
        for name in names:
            job.execute_in_process(instance=self.instance, asset_selection=[dg.AssetKey(name)])

    def tick(self) -> set[str]:
        result = dg.evaluate_automation_conditions(defs=self.definitions(), instance=self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {name for name in NAMES if result.get_num_requested(dg.AssetKey(name))}


@pytest.fixture
def settled() -> World:
    world = World()
    world.build(*NAMES)
    world.tick()
    assert world.tick() == set()
    return world


def test_first_builds_are_started_by_hand():
    world = World()
    assert world.tick() == set()
    world.build("source")
    # Its direct child may follow, nothing further: that is for the child's own new data to start.
    assert world.tick() <= {"model"}


def change_nothing(world: World) -> None:
    world.build("source")


def new_data(world: World) -> None:
    world.data["source"] = "2"
    world.build("source")


def new_settings(world: World) -> None:
    world.code["model"] = "2"


@pytest.mark.parametrize(
    ("event", "requested"),
    [(change_nothing, set()), (new_data, {"model"}), (new_settings, {"model"})],
)
def test_the_direct_child_of_new_data_runs(settled: World, event, requested: set[str]):
    event(settled)
    assert settled.tick() == requested
    assert settled.tick() == set()


def test_it_goes_on_only_as_versions_change(settled: World):
    new_settings(settled)
    assert settled.tick() == {"model"}
    settled.build("model")
    assert settled.tick() == set()
    settled.data["model"] = "2"
    settled.build("model")
    assert settled.tick() == {"report"}


def test_every_asset_has_the_condition_and_the_sensor_is_off(tmp_path):
    definitions = build_definitions(load_recipe("smoke"), str(tmp_path))
    graph = definitions.resolve_asset_graph()
    assert all(graph.get(key).automation_condition is refresh_when_inputs_change for key in graph.get_all_asset_keys())
    sensor = definitions.resolve_sensor_def("automation")
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED

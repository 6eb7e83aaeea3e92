"""Sizes of workers come from nodes, never from the sum of a cluster."""

import pytest

from flextok.config import parse_config
from flextok.errors import UsageError
from flextok.runtime.compute import ComputeConfig, parse_resources
from flextok.runtime.nodes import ASKED_OF_AUTOSCALER, UNLIMITED, ClusterNodes, Node
from flextok.tokenize.scheduler import choose_workers

MANY = [10_000] * 100
CPU_CASES = {
    # nodes: ((there), (coming)), most actors -> CPUs of an actor, actors at once
    "1x64, 2 actors": (ClusterNodes([Node(64)]), 2, 32, 2),
    "1x64, 64 actors": (ClusterNodes([Node(64)]), 64, 1, 64),
    "64x1": (ClusterNodes([Node(1)] * 64), 64, 1, 64),
    "64x1, 2 actors": (ClusterNodes([Node(1)] * 64), 2, 1, 64),
    "two of one CPU": (ClusterNodes([Node(1), Node(1)]), 1, 1, 2),
    "4x16, 2 actors": (ClusterNodes([Node(16)] * 4), 2, 16, 4),
    "4x16, 8 actors": (ClusterNodes([Node(16)] * 4), 8, 8, 8),
    "3+5, 2 actors": (ClusterNodes([Node(3), Node(5)]), 2, 3, 2),
    "3+5, 3 actors": (ClusterNodes([Node(3), Node(5)]), 3, 2, 3),
    "a head with 0 CPUs": (ClusterNodes([Node(0), Node(8), Node(8)]), 4, 4, 4),
    "more actors than CPUs": (ClusterNodes([Node(2)]), 64, 1, 2),
    "nothing there, one of 8 to come": (ClusterNodes([], [Node(8)]), 2, 4, 2),
    "a head with 0 CPUs, 8 of 4 to come": (ClusterNodes([Node(0)], [Node(4, count=8)]), 16, 2, 16),
    "a head with 0 CPUs and an autoscaler that says nothing": (ClusterNodes([Node(0)], grows=True), 4, 1, UNLIMITED),
    "3+5 and an autoscaler that says nothing": (ClusterNodes([Node(3), Node(5)], grows=True), 2, 3, UNLIMITED),
    "any number to come": (ClusterNodes([Node(1)], [Node(8, count=UNLIMITED)]), 64, 8, UNLIMITED),
}


@pytest.mark.parametrize("case", CPU_CASES)
def test_an_actor_fits_on_a_node(case: str) -> None:
    nodes, most, cpus, at_once = CPU_CASES[case]
    workers = choose_workers(MANY, ComputeConfig(address="auto", tokenize_actors=(1, most)), nodes)
    assert (workers.most, workers.cpus, workers.threads, workers.gpus) == (most, cpus, cpus, 0)
    assert nodes.places(workers.cpus) == at_once


GPU_CASES = {
    # nodes, GPUs of an actor, most actors -> decoders of an actor, actors at once
    "8 GPUs and 64 CPUs": (ClusterNodes([Node(64, 8)]), 1, 8, 8, 8),
    "8 GPUs and 64 CPUs, 2 actors": (ClusterNodes([Node(64, 8)]), 1, 2, 32, 8),
    "a CPU head and GPU nodes": (ClusterNodes([Node(64), Node(8, 1), Node(8, 1)]), 1, 2, 8, 2),
    "unequal GPU nodes": (ClusterNodes([Node(16, 8), Node(16, 1)]), 1, 9, 2, 9),
    "two actors on a GPU": (ClusterNodes([Node(8, 1)]), 0.5, 2, 4, 2),
    "fewer CPUs than GPUs": (ClusterNodes([Node(2, 8)]), 1, 8, 1, 2),
    "GPU nodes to come": (ClusterNodes([Node(0)], [Node(12, 4, count=2)]), 1, 8, 3, 8),
}


@pytest.mark.parametrize("case", GPU_CASES)
def test_decoders_share_the_cpus_of_their_node(case: str) -> None:
    nodes, gpus, most, threads, at_once = GPU_CASES[case]
    compute = ComputeConfig(address="auto", tokenize_actors=(1, most), gpus_per_worker=gpus)
    workers = choose_workers(MANY, compute, nodes)
    assert (workers.threads, workers.cpus, workers.gpus) == (threads, 1, gpus)
    assert nodes.places(workers.cpus, workers.gpus) == at_once


@pytest.mark.parametrize(
    ("changes", "nodes", "said"),
    [
        ({"threads": 2}, [Node(1), Node(1)], "2 CPUs for an actor, found 2 nodes, of which the largest has 1 CPU;"),
        ({"threads": 6}, [Node(3), Node(5)], "6 CPUs for an actor, found 2 nodes, of which the largest has 5 CPUs;"),
        ({"gpus_per_worker": 2}, [Node(8, 1), Node(64)], "1 CPU and 2 GPUs .* the largest has 8 CPUs and 1 GPU;"),
        ({"gpus_per_worker": 1}, [Node(0)], "found 1 node, of which the largest has 0 CPUs;"),
        ({}, [], "expected a node with 1 CPU for an actor, found no node;"),
    ],
)
def test_what_can_never_fit_is_refused_at_once(changes: dict, nodes: list[Node], said: str) -> None:
    compute = ComputeConfig(address="auto", tokenize_actors=(1, 2)).model_copy(update=changes)
    with pytest.raises(UsageError, match=said):
        choose_workers(MANY, compute, ClusterNodes(nodes))
    coming = ClusterNodes(nodes, [Node(8, 4)])
    assert coming.places(choose_workers(MANY, compute, coming).cpus) > 0


def test_threads_may_be_more_than_the_cores_of_this_machine() -> None:
    workers = choose_workers(MANY, ComputeConfig(threads=8), ClusterNodes([Node(2)]))
    assert (workers.cpus, workers.threads) == (2, 8)


def test_what_workers_ask_for_beside_cpus_bounds_them() -> None:
    nodes = ClusterNodes([Node(16, most=0), Node(4, most=2)])
    workers = choose_workers(MANY, ComputeConfig(address="auto", tokenize_actors=(1, 2), resources={"seat": 1}), nodes)
    assert (workers.cpus, workers.beside, nodes.places(workers.cpus)) == (2, {"seat": 1}, 2)
    with pytest.raises(UsageError, match="expected a node with 1 CPU, pool=fast and seat=2 for an actor"):
        compute = ComputeConfig(address="auto", resources={"pool": "fast", "seat": 2})
        choose_workers(MANY, compute, ClusterNodes([Node(16, most=0)]))


def test_resources_as_texts() -> None:
    assert parse_resources(["seat=0.5", "ray.io/accelerator-type=H100"]) == {
        "seat": 0.5,
        "ray.io/accelerator-type": "H100",
    }
    with pytest.raises(UsageError, match="expected --resource NAME=VALUE, found --resource seat"):
        parse_resources(["seat"])
    with pytest.raises(UsageError, match="expected custom resources and labels, found CPU"):
        parse_config(ComputeConfig, {"resources": {"CPU": 2}}, "here")


def test_workers_that_nobody_numbered_are_as_many_as_fit_or_some_of_an_autoscaler() -> None:
    assert ClusterNodes([Node(3), Node(5)]).workers_to_ask_for(2) == 3
    assert ClusterNodes([Node(0)], [Node(4, count=8)]).workers_to_ask_for(1) == 32
    assert ClusterNodes([Node(0)], grows=True).workers_to_ask_for(1) == ASKED_OF_AUTOSCALER
    assert ClusterNodes([Node(128)], grows=True).workers_to_ask_for(1) == 128


def test_an_autoscaler_that_says_nothing_is_named() -> None:
    assert ClusterNodes([Node(0)], grows=True).described().endswith("the largest has 0 CPUs and an autoscaler")

"""The specification of OpenLineage's facets as the client's classes have it."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import attr
from openlineage.client import generated
from openlineage.client.generated import base


def _classes() -> dict[str, type]:
    modules = [
        importlib.import_module(f"{generated.__name__}.{item.name}")
        for item in pkgutil.iter_modules(generated.__path__)
    ]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {value._get_schema(): value for value in found if issubclass(value, base.BaseFacet)}


FACETS = _classes()


def check_event(event: Mapping[str, Any]) -> None:
    """Every facet is one of the specification, has its fields, and stands where it may."""
    check_facets(event["run"]["facets"], base.RunFacet)
    check_facets(event["job"]["facets"], base.JobFacet)
    for item in event["inputs"]:
        check_facets(item["facets"], base.DatasetFacet)
        check_facets(item["inputFacets"], base.InputDatasetFacet)
    for item in event["outputs"]:
        check_facets(item["facets"], base.DatasetFacet)
        check_facets(item["outputFacets"], base.OutputDatasetFacet)


def check_facets(facets: Mapping[str, Mapping[str, Any]], kind: type) -> None:
    for name, facet in facets.items():
        known = FACETS[facet["_schemaURL"]]
        assert issubclass(known, kind), f"{name} may not stand there"
        assert name.lower() in known.__name__.lower()
        required = {item.name for item in attr.fields(known) if item.default is attr.NOTHING}
        assert required <= set(facet) <= {item.name for item in attr.fields(known)}
        assert facet["_producer"].startswith("urn:flextok-pipelines:")

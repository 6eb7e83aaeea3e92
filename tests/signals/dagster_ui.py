"""`flextok ui` in a process of its own, and what a person does on its pages, by the queries that these send."""

import json
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from flextok_process import IN_THE_BACKGROUND, ROOT, Command, wait_until

ASSETS = "{ assetNodes { assetKey { path } partitionKeys repository { name location { name } } } }"
LAUNCH = """
mutation ($selector: JobOrPipelineSelector!) {
  launchPipelineExecution(executionParams: {selector: $selector, runConfigData: {}}) { __typename }
}
"""
BACKFILL = """
mutation ($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) { ... on LaunchBackfillSuccess { backfillId } __typename }
}
"""
VERDICT = "query ($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) { staleStatus } }"
VERDICTS = "query ($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) { staleStatusByPartition } }"
STATUS = "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"


class DagsterUI:
    """Started as a script does with `&`: SIGINT is ignored by it, and would be by all that it starts."""

    def __init__(self, *arguments: str, sets: tuple[str, ...] = (), cwd: Path = ROOT):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.command = Command(
                "ui", *arguments, "--port", str(self.port), sets=sets, program=IN_THE_BACKGROUND, cwd=cwd
            )
        finally:
            signal.signal(signal.SIGINT, before)
        wait_until(self._answers)

    def ask(self, query: str, **variables: Any) -> Any:
        """What the UI's own server answers to a GraphQL query."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def launch(self, assets: Sequence[str]) -> None:
        """What the button Materialize does."""
        nodes = self._nodes(assets)
        repository = nodes[0]["repository"]
        selector = {
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
            "jobName": "__ASSET_JOB",
            "assetSelection": [node["assetKey"] for node in nodes],
        }
        assert self.ask(LAUNCH, selector=selector)["launchPipelineExecution"]["__typename"] == "LaunchRunSuccess"

    def partitions(self, asset: str) -> list[str]:
        """Of an asset, as its page lists them."""
        return self._nodes([asset])[0]["partitionKeys"]

    def backfill(self, assets: Sequence[str], partitions: Sequence[str]) -> str:
        """Launch one; its id."""
        keys = [node["assetKey"] for node in self._nodes(assets)]
        parameters = {"assetSelection": keys, "partitionNames": partitions}
        launched = self.ask(BACKFILL, parameters=parameters)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess"
        return launched["backfillId"]

    def status_of(self, backfill: str) -> str:
        """Of a backfill."""
        return self.ask(STATUS, id=backfill)["partitionBackfillOrError"]["status"]

    def out_of_date(self) -> set[str]:
        """What its pages do not call fresh, by `name` or `name[partition]`."""
        found = {}
        for node in self.ask(ASSETS)["assetNodes"]:
            name, partitions = node["assetKey"]["path"][-1], node["partitionKeys"]
            keys = [{"path": node["assetKey"]["path"]}]
            (asked,) = self.ask(VERDICTS if partitions else VERDICT, keys=keys)["assetNodes"]
            labels = [f"{name}[{partition}]" for partition in partitions] or [name]
            found |= dict(zip(labels, asked.get("staleStatusByPartition") or [asked["staleStatus"]], strict=True))
        return {label for label, verdict in found.items() if verdict != "FRESH"}

    def _nodes(self, assets: Sequence[str]) -> list[dict[str, Any]]:
        return [node for node in self.ask(ASSETS)["assetNodes"] if node["assetKey"]["path"][-1] in assets]

    def _answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self.port)) == 0

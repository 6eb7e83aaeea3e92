"""MLflow's tracking: a server, or one SQLite file, as MLflow keeps runs on a disk since its 3.7.

mlflow ui --backend-store-uri sqlite:///workspace/checkpoints/tokenizer/.logs/mlflow/mlflow.db
"""

import os
import time
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from flextok.train.sinks.base import SINKS, HistoryRow, RunInfo, Sink, SinkSettings, local_folder

MOST_METRICS = 1000  # in one of MLflow's batches
RUN_TAG = "flextok.fingerprint"


@SINKS.register
class MlflowConfig(SinkSettings):
    """A run for each training, which a resumed one goes on with."""

    kind: Literal["mlflow"] = "mlflow"
    package: ClassVar[str] = "mlflow"
    uri: str | None = Field(
        default=None,
        description="MLflow's tracking URI; null: that of MLFLOW_TRACKING_URI, else `.logs/mlflow/mlflow.db` beside the "
        "checkpoints.",
    )
    experiment: str = Field(default="flextok", min_length=1, description="Experiment of the run.")

    def open(self, run: RunInfo, first_step: int) -> Sink:
        return _Mlflow(self, run)


class _Mlflow:
    def __init__(self, settings: MlflowConfig, run: RunInfo):
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
        folder = local_folder(None, run, settings.kind) if uri is None else None
        self._client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
        found = self._client.get_experiment_by_name(settings.experiment)
        where = (folder / "artifacts").as_uri() if folder else None
        experiment = found.experiment_id if found else self._client.create_experiment(settings.experiment, where)
        runs = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.fingerprint}'", max_results=1)
        if runs:
            self._run_id = runs[0].info.run_id
            self._client.update_run(self._run_id, "RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.name, tags={RUN_TAG: run.fingerprint})
        self._run_id = made.info.run_id
        self._client.log_dict(self._run_id, run.settings, "settings.json")

    def write(self, rows: list[HistoryRow]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, name, value in rows]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._run_id, metrics[start : start + MOST_METRICS])

    def show(self, step: int, picture_HWC: np.ndarray) -> None:
        self._client.log_image(self._run_id, picture_HWC, f"pictures/step_{step:09d}.png")

    def close(self, is_finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if is_finished else "FAILED")

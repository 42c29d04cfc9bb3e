"""Per-query results of a loss's training runs, as the comparisons take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import read_npz
from mlrc_lightning.names import PER_QUERY

Metric = Literal["precision_at_1", "r_precision", "mean_average_precision_at_r"]
Embedding = Literal["separated", "concatenated"]


@dataclass(frozen=True)
class QueryResults:
    """One metric of one loss, query by query and run by run.

    Attributes:
        loss: Its name, for messages and rows.
        scores: (R, Q), in [0, 1], float64.
        labels: Class of each query; (Q,), integers.
        index: Dataset index of each query, strictly ascending; (Q,), integers. Losses can be compared where it is
            the same.

    Raises:
        RecordError: Shapes do not fit, a score is not finite, or the index does not ascend.
    """

    loss: str
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = self.scores.shape, self.labels.shape, self.index.shape
        queries = self.index.size
        if (
            self.scores.ndim != 2
            or 0 in self.scores.shape
            or shapes != ((self.scores.shape[0], queries), *[(queries,)] * 2)
        ):
            raise RecordError(f"{self.loss}: expected scores (R, Q), labels (Q,), index (Q,), found shapes {shapes}.")
        if not np.isfinite(self.scores).all():
            raise RecordError(f"{self.loss}: a per-query score is not finite; its run has to be tested again.")
        if (np.diff(self.index) <= 0).any():
            raise RecordError(f"{self.loss}: the queries' dataset indices must ascend without repeats.")


def read_query_results(loss: str, files: Sequence[Path], metric: Metric, embedding: Embedding) -> QueryResults:
    """Reads `queries_test.npz` of each run of a loss.

    Separated scores are the mean over a run's fold models, query by query, so that their mean over queries is the
    separated accuracy of the table.

    Args:
        loss: Name of the loss.
        files: One file a run.
        metric: Which metric.
        embedding: Separated or concatenated.

    Raises:
        RecordError: There is no file, one is damaged or lacks the metric, or runs differ in queries, labels or folds.
    """
    if not files:
        raise RecordError(f"{loss}: no run with per-query results; reproduce it first.")
    key = PER_QUERY[metric] if embedding == "separated" else f"concatenated_{PER_QUERY[metric]}"
    runs = [_read(file, key) for file in files]
    for file, run in zip(files, runs, strict=True):
        for name in ("index", "label", "folds"):
            if not np.array_equal(run[name], runs[0][name]):
                raise RecordError(
                    f"{file}: its {name} differs from that of {files[0]}; runs of one table are tested on the same "
                    "queries with the same folds. Test the run again, or leave it out."
                )
    scores = [run[key].astype(np.float64) for run in runs]
    if embedding == "separated":
        scores = [score.mean(axis=0) for score in scores]
    return QueryResults(loss, np.stack(scores), runs[0]["label"].astype(np.int64), runs[0]["index"].astype(np.int64))


def _read(file: Path, key: str) -> dict[str, NDArray[np.float64]]:
    arrays = read_npz(file, "the per-query results of a run")
    lacking = [name for name in ("index", "label", "folds", key) if name not in arrays]
    if lacking:
        raise RecordError(f"{file}: lacks {', '.join(lacking)}; was every fold trained? Test the run again.")
    return arrays

"""Accuracies of single queries of the test classes, so that statistics of finished runs need no model and no image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import read_npz, write_bytes
from mlrc_lightning.names import PER_QUERY
from mlrc_lightning.results.records import Accuracies

_CONCATENATED = "concatenated_"


@dataclass(frozen=True)
class QueryAccuracies:
    """The three accuracies of each query: Q of them for one embedding, (K, Q) for those of K folds.

    Their means over queries are the accuracies of the record, within the rounding of float32.

    Attributes:
        correct_at_1: Whether the nearest neighbour is of the query's class; uint8, 0 or 1.
        r_precision: R-Precision; float32.
        average_precision_at_r: AP@R; float32.
    """

    correct_at_1: NDArray[np.uint8]
    r_precision: NDArray[np.float32]
    average_precision_at_r: NDArray[np.float32]

    def means(self) -> list[Accuracies]:
        """Returns the mean over queries, one for each row, summed in float64."""
        columns: dict[str, NDArray[Any]] = {name: getattr(self, key) for name, key in PER_QUERY.items()}
        means = {name: np.atleast_2d(values).mean(axis=1, dtype=np.float64) for name, values in columns.items()}
        return [
            {name: float(values[row]) for name, values in means.items()} for row in range(len(means["r_precision"]))
        ]


@dataclass(frozen=True)
class QueryResults:
    """What one run's models do on every query.

    Attributes:
        index: Dataset index of each query, ascending; (Q,), int64. An image alone in its class is none.
        label: Class position of each query; (Q,), int64.
        folds: Number of each fold; (K,), int64.
        separated: Of each fold's model; (K, Q).
        concatenated: Of all folds' embeddings as one; (Q,). None where not all folds were trained.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    folds: NDArray[np.int64]
    separated: QueryAccuracies
    concatenated: QueryAccuracies | None


def write_queries(path: Path, results: QueryResults) -> None:
    """Writes the results compressed and as a whole: a reader sees the old file or the new."""
    arrays: dict[str, NDArray[np.generic]] = {
        "index": results.index.astype(np.int64),
        "label": results.label.astype(np.int64),
        "folds": results.folds.astype(np.int64),
        **vars(results.separated),
    }
    if results.concatenated is not None:
        arrays |= {f"{_CONCATENATED}{name}": values for name, values in vars(results.concatenated).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a keyword for allow_pickle
    write_bytes(path, buffer.getvalue())


def read_queries(path: Path) -> QueryResults:
    """Reads the results of one run.

    Raises:
        RecordError: The file is missing or damaged.
    """
    try:
        found = read_npz(path, "the accuracies of single queries")
        names = ("correct_at_1", "r_precision", "average_precision_at_r")
        has_concatenated = f"{_CONCATENATED}r_precision" in found
        return QueryResults(
            index=found["index"],
            label=found["label"],
            folds=found["folds"],
            separated=QueryAccuracies(**{name: found[name] for name in names}),
            concatenated=QueryAccuracies(**{name: found[f"{_CONCATENATED}{name}"] for name in names})
            if has_concatenated
            else None,
        )
    except KeyError as error:
        raise RecordError(f"{path}: expected the accuracies of single queries, found none of {error}.") from error

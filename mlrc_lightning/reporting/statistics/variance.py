"""Where the spread of scores comes from: training runs, folds, searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import RecordError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class VarianceComponents:
    """Variances of a score of one run and one fold, in squared units of the scores.

    Attributes:
        run: Between training runs, the same for all folds of a run.
        fold: Between folds: their training classes differ.
        residual: What is left in a cell: run by fold and the chance of a single training.
        truncated: Names of components whose estimate came out negative and is given as 0.
        num_runs: R.
        num_folds: K.
    """

    run: float
    fold: float
    residual: float
    truncated: tuple[str, ...]
    num_runs: int
    num_folds: int


@dataclass(frozen=True)
class SearchVariance:
    """Variances of a run's score over repeated searches, in squared units of the scores.

    Attributes:
        between_searches: What repeating the search, and so the hyperparameters it finds, adds.
        within: Between the runs of one setting.
        truncated: Whether the estimate between searches came out negative and is given as 0.
        num_searches: Number of settings.
        num_runs: Runs of each setting.
    """

    between_searches: float
    within: float
    truncated: bool
    num_searches: int
    num_runs: tuple[int, ...]


def variance_components(scores: Sequence[Sequence[float]] | Array) -> VarianceComponents:
    """Splits the spread of fold scores into run, fold and residual: balanced two-way random-effects ANOVA.

    With mean squares of R runs, K folds and what is left: run = (MS_run - MS_left) / K, fold = (MS_fold - MS_left) / R,
    residual = MS_left. REML gives the same wherever neither difference is negative.

    Args:
        scores: Separated accuracies, one row a run, one column a fold; (R, K), both at least 2, all finite.

    Raises:
        RecordError: The table is too small, ragged, or holds a value that is not finite.

    Source: Searle, Casella & McCulloch 1992, Variance Components, chapter 4.
    """
    if len({len(row) for row in scores}) > 1:
        raise RecordError("Run and fold variance need every fold of every run; leave out runs that lack a fold.")
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise RecordError(f"Run and fold variance need finite scores of 2 runs and 2 folds at least, found {x.shape}.")
    num_runs, num_folds = x.shape
    run_means, fold_means, mean = x.mean(axis=1), x.mean(axis=0), x.mean()
    ms_run = num_folds * float(((run_means - mean) ** 2).sum()) / (num_runs - 1)
    ms_fold = num_runs * float(((fold_means - mean) ** 2).sum()) / (num_folds - 1)
    rest = x - run_means[:, None] - fold_means + mean
    ms_rest = float((rest**2).sum()) / ((num_runs - 1) * (num_folds - 1))
    estimates = {"run": (ms_run - ms_rest) / num_folds, "fold": (ms_fold - ms_rest) / num_runs}
    truncated = tuple(name for name, value in estimates.items() if value < 0)
    run, fold = (max(0.0, value) for value in estimates.values())
    return VarianceComponents(run, fold, ms_rest, truncated, num_runs, num_folds)


def search_variance(settings: Sequence[Sequence[float]]) -> SearchVariance:
    """Splits the spread of a cell's runs into between and within searches: one-way random-effects ANOVA.

    between = (MS_between - MS_within) / n0, with n0 = (N - sum n_i^2 / N) / (S - 1), which is n for equal n.

    Args:
        settings: For each search, the scores of its best setting's runs; two searches at least, and one of them with
            two runs.

    Raises:
        RecordError: There are fewer searches or runs, or a value is not finite.

    Source: Searle, Casella & McCulloch 1992, Variance Components, chapter 3 (unbalanced data).
    """
    groups = [np.asarray(scores, dtype=np.float64) for scores in settings]
    counts = np.array([group.size for group in groups])
    if len(groups) < 2 or (counts == 0).any() or counts.sum() <= len(groups):
        raise RecordError(
            "Search variance needs two searches at least, each with runs, one of them with two; "
            f"found {counts.tolist()} runs."
        )
    everything = np.concatenate(groups)
    if not np.isfinite(everything).all():
        raise RecordError("Search variance needs finite scores; leave out failed runs.")
    total = int(counts.sum())
    means = np.array([group.mean() for group in groups])
    ms_between = float((counts * (means - everything.mean()) ** 2).sum()) / (len(groups) - 1)
    ms_within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (total - len(groups))
    n0 = (total - float((counts**2).sum()) / total) / (len(groups) - 1)
    between = (ms_between - ms_within) / n0
    return SearchVariance(max(0.0, between), ms_within, between < 0, len(groups), tuple(int(n) for n in counts))

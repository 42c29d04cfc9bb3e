"""Search-level early stopping, as upstream has it."""

import logging

from mlrc_sweeper.state import Trial

from ._problem import Problem

log = logging.getLogger(__name__)


class EarlyStopper:
    """Counts completed trials since the best value last improved by more than epsilon.

    The start-up phase counts as one epoch, later trials as one each: upstream asks its stopper once a
    batch, and launches the start-up trials as one.
    """

    def __init__(self, problem: Problem) -> None:
        """Read the settings."""
        self._problem = problem
        self._settings = problem.settings.ax_config.early_stop
        minimize = problem.objectives[problem.objective]
        if self._settings is not None and self._settings.minimize is not None:
            minimize = self._settings.minimize
        self._sign = -1.0 if minimize else 1.0
        self._best: float | None = None
        self._completed = 0
        self._without_improvement = 0

    @property
    def says_stop(self) -> bool:
        """Whether the search is to end."""
        settings = self._settings
        if settings is None or settings.max_epochs_without_improvement is None or self._problem.is_multi_objective:
            return False
        return self._without_improvement >= settings.max_epochs_without_improvement

    def follow(self, trial: Trial) -> None:
        """Take note of a completed trial, or of one that lost a race, which is no improvement."""
        self._completed += 1
        if trial.status == "raced_out":
            self._without_improvement += self._completed > self._problem.initialization_budget
            return
        value = self._sign * trial.measurements[self._problem.objective].mean
        epsilon = 0.0 if self._settings is None else self._settings.epsilon
        if self._best is None or value - epsilon > self._best:
            self._best = value
            self._without_improvement = 0
        elif self._completed > self._problem.initialization_budget:
            self._without_improvement += 1
            if self.says_stop:
                log.info(
                    "Early stopping, best known value %s did not improve for %d epochs",
                    self._sign * self._best,
                    self._without_improvement,
                )

"""Which runs count for a loss: the one answer for tables, figures, the site, comparisons and studies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from mlrc_lightning.names import SEARCH, UNTRAINED
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.results.runs import Run, RunSet, has_best_hyperparameters
from mlrc_lightning.results.searches import SearchResult


class Choice:
    """The runs that count for each loss of one protocol and setting, with hyperparameters from one source.

    Args:
        protocol: Whose runs count.
        setting: Dataset and batch size, as in the folders under `outputs`.
        source: Where the hyperparameters come from: search, paper or given.
        sets: All sets of runs that were found.
        searches: All searches that were found.

    Attributes:
        sets: The sets of this protocol, setting and source, of trained losses.
        baselines: The sets without training.
        searches: The search of each loss.
    """

    def __init__(
        self, protocol: str, setting: str, source: str, sets: Sequence[RunSet], searches: Sequence[SearchResult]
    ) -> None:
        self.source = source
        own = [run_set for run_set in sets if (run_set.protocol, run_set.setting) == (protocol, setting)]
        self.sets = [run_set for run_set in own if run_set.loss != UNTRAINED and run_set.source == source]
        self.baselines = [run_set for run_set in own if run_set.loss == UNTRAINED]
        self._searches = [search for search in searches if (search.protocol, search.setting) == (protocol, setting)]
        self.searches = {search.loss: search for search in self._searches if search.name == SEARCH}

    @cached_property
    def data(self) -> str | None:
        """What most finished runs were trained on, with which precision. Only runs that share it are compared."""
        complete = [run for run_set in [*self.baselines, *self.sets] for run in run_set.complete]
        return _most_frequent(_data(run.outcome) for run in complete)

    def of(self, loss: str) -> RunSet | None:
        """Returns the set of runs that counts for a loss.

        These are the runs of the search's best trial. Where there are none, the set that is
        furthest on counts.
        """
        sets = [run_set for run_set in self.sets if run_set.loss == loss]
        search = self.searches.get(loss) if self.source == SEARCH else None
        return furthest([s for s in sets if search is not None and has_best_hyperparameters(s, search)] or sets)

    def of_each_search(self, loss: str) -> list[RunSet]:
        """Returns the runs of the best trial of each search of a loss, whatever the search is called."""
        found = {}
        for search in self._searches if self.source == SEARCH else ():
            own = [s for s in self.sets if s.loss == loss == search.loss and s.complete]
            counted = next((s for s in own if has_best_hyperparameters(s, search)), None)
            if counted is not None:
                found[counted.digest] = counted
        return list(found.values())

    def comparable(self, run_set: RunSet) -> list[Run]:
        """Returns the finished runs of a set that share the data of the others."""
        return [run for run in run_set.complete if _data(run.outcome) == self.data]


def furthest(sets: Sequence[RunSet]) -> RunSet | None:
    """Returns the set with the most finished runs, of equal ones that which began last."""
    return max(sets, key=_progress, default=None)


def _progress(run_set: RunSet) -> tuple[int, str, str]:
    begun = max((run.outcome.started_at for run in run_set.complete if run.outcome is not None), default="")
    return len(run_set.complete), begun, run_set.folder.name


def _data(outcome: TrialRecord | None) -> str | None:
    """Returns what two runs of one protocol and setting must share to be compared, as text."""
    if outcome is None:
        return None
    settings = outcome.settings
    rule = {"min_images_per_class": settings["dataset"]["min_images_per_class"]}
    dataset = {key: value for key, value in outcome.dataset.items() if not isinstance(value, list | dict)}
    return json.dumps({**rule, **dataset, "precision": settings["trainer"]["precision"]}, sort_keys=True)


def _most_frequent(values: Iterable[str | None]) -> str | None:
    counts = Counter(value for value in values if value is not None)
    return max(sorted(counts), key=lambda value: counts[value]) if counts else None

"""The state of a search, derived from its ledger, whether that is an old one or still being written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlrc_sweeper.measurements import Measurement, Measurements, combine_replicates
from mlrc_sweeper.records import Record

Value = bool | int | float | str
Status = Literal["open", "completed", "failed", "raced_out"]


@dataclass
class Trial:
    """One setting of the tuned parameters, and what became of it."""

    index: int
    parameters: dict[str, Value]
    generator: str
    status: Status = "open"
    # results and number of failures so far, by replicate
    results: dict[int, Measurements] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    # job number of a replicate's attempt that has begun and, as far as the ledger knows, not ended
    open_jobs: dict[int, int] = field(default_factory=dict)
    # number of a replicate's last attempt where that was cut off; the retry keeps it
    kept_jobs: dict[int, int] = field(default_factory=dict)
    # what the launcher calls an open job, by replicate: its id in SLURM
    ids: dict[int, str] = field(default_factory=dict)
    jobs: list[int] = field(default_factory=list)
    seconds: float = 0.0
    reason: str | None = None
    # what a trial that lost a race would have come to: mean and standard error
    forecast: tuple[float, float] | None = None

    @property
    def measurements(self) -> Measurements:
        """Aggregate over the replicates that have results."""
        jobs = [self.results[replicate] for replicate in sorted(self.results)]
        if len(jobs) == 1:
            return jobs[0]
        return combine_replicates(jobs) if jobs else {}


@dataclass
class SearchState:
    """Everything the ledger says."""

    header: dict[str, Any] | None = None
    trials: list[Trial] = field(default_factory=list)
    # indices of trials that came to a value or lost a race, in the order of that
    concluded: list[int] = field(default_factory=list)
    next_job: int = 0
    max_trials: int = 0
    # trials that had failed when the search last stopped because of failures; a repeated command starts anew
    forgiven_failures: int = 0
    # trial whose usage error stopped the search before
    usage_error_trial: int | None = None
    finished: dict[str, Any] | None = None
    exhausted: bool = False

    def apply(self, record: Record) -> None:
        """Follow one record. A type that this version does not know changes nothing."""
        follow = getattr(self, f"_on_{record.type}", None)
        if follow is not None:
            follow(record.payload)

    def _trial(self, payload: Mapping[str, Any]) -> Trial:
        index: int = payload["trial"]
        return self.trials[index]

    def _on_search(self, payload: Mapping[str, Any]) -> None:
        self.header = dict(payload)
        self.max_trials = payload["max_trials"]

    def _on_extended(self, payload: Mapping[str, Any]) -> None:
        self.max_trials = payload["max_trials"]
        self.finished, self.exhausted = None, False

    def _on_reopened(self, payload: Mapping[str, Any]) -> None:
        trial = self._trial(payload)
        trial.status, trial.reason = "open", None
        trial.failures.clear()
        self.finished, self.exhausted, self.forgiven_failures = None, False, 0

    def _on_proposed(self, payload: Mapping[str, Any]) -> None:
        self.trials.append(Trial(payload["trial"], dict(payload["parameters"]), payload["generator"]))
        self.finished = None

    def _on_started(self, payload: Mapping[str, Any]) -> None:
        trial = self._trial(payload)
        trial.open_jobs[payload["replicate"]] = payload["job"]
        trial.kept_jobs.pop(payload["replicate"], None)
        if payload["job"] not in trial.jobs:
            trial.jobs.append(payload["job"])
        self.next_job = max(self.next_job, payload["job"] + 1)

    def _on_submitted(self, payload: Mapping[str, Any]) -> None:
        self._trial(payload).ids[payload["replicate"]] = payload["id"]

    def _on_result(self, payload: Mapping[str, Any]) -> None:
        measured = {name: Measurement.from_json(fields) for name, fields in payload["metrics"].items()}
        self._end_job(payload).results[payload["replicate"]] = measured

    def _on_job_failed(self, payload: Mapping[str, Any]) -> None:
        trial, replicate = self._end_job(payload), payload["replicate"]
        trial.failures[replicate] = trial.failures.get(replicate, 0) + 1
        if payload.get("keeps_job", False):  # older ledgers know no such thing
            trial.kept_jobs[replicate] = payload["job"]
        trial.reason = payload["reason"]

    def _end_job(self, payload: Mapping[str, Any]) -> Trial:
        trial = self._trial(payload)
        trial.open_jobs.pop(payload["replicate"], None)
        trial.ids.pop(payload["replicate"], None)
        trial.seconds += payload["seconds"]
        return trial

    def _on_completed(self, payload: Mapping[str, Any]) -> None:
        self._conclude(payload, "completed", None)

    def _on_failed(self, payload: Mapping[str, Any]) -> None:
        trial = self._trial(payload)
        trial.status, trial.reason = "failed", payload["reason"]

    def _on_raced_out(self, payload: Mapping[str, Any]) -> None:
        trial = self._conclude(payload, "raced_out", payload["reason"])
        trial.forecast = (payload["forecast"], payload["standard_error"])

    def _conclude(self, payload: Mapping[str, Any], status: Status, reason: str | None) -> Trial:
        trial = self._trial(payload)
        trial.status, trial.reason = status, reason
        self.concluded.append(trial.index)
        return trial

    def _on_exhausted(self, payload: Mapping[str, Any]) -> None:
        self.exhausted = True

    def _on_stopped(self, payload: Mapping[str, Any]) -> None:
        if payload["cause"] == "failures":
            self.forgiven_failures = self.num_failed
        self.usage_error_trial = payload.get("trial")

    def _on_finished(self, payload: Mapping[str, Any]) -> None:
        self.finished = dict(payload)

    def with_status(self, *statuses: Status) -> list[Trial]:
        """Trials in any of the statuses, in order of their index."""
        return [trial for trial in self.trials if trial.status in statuses]

    def replicate_values(self, trial: Trial, metric: str) -> list[float]:
        """The trial's values by replicate, as far as they follow one another from the first."""
        values: list[float] = []
        while (measured := trial.results.get(len(values), {}).get(metric)) is not None:
            values.append(measured.mean)
        return values

    def replicate_table(self, metric: str) -> list[list[float]]:
        """Completed trials by replicates."""
        return [self.replicate_values(trial, metric) for trial in self.with_status("completed")]

    @property
    def objective(self) -> str:
        """The (first) objective of a search that has a header."""
        assert self.header is not None
        return str(next(iter(self.header["signature"]["objective"])))

    @property
    def shared(self) -> dict[str, Value]:
        """Name and value of the search's fixed parameters and of those that have one choice."""
        space = {} if self.header is None else self.header["signature"]["search space"]
        return {n: e["values"][0] for n, e in space.items() if isinstance(e, dict) and len(e.get("values") or ()) == 1}

    @property
    def num_completed(self) -> int:
        """Trials that count towards `max_trials`. One that lost a race has had its turn."""
        return len(self.with_status("completed", "raced_out"))

    @property
    def num_failed(self) -> int:
        """Failed trials since the beginning."""
        return len(self.with_status("failed"))

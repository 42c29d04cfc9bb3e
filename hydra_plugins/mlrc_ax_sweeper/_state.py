"""The state of a search, derived from its ledger, whether that is an old one or still being written."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ._ledger import Record
from ._measurements import Measurement, Measurements, combine_replicates
from ._search_space import Value

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

    @classmethod
    def from_records(cls, records: Iterable[Record]) -> "SearchState":
        """Replay a ledger."""
        state = cls()
        for record in records:
            state.apply(record)
        return state

    def apply(self, record: Record) -> None:
        """Follow one record."""
        payload = record.payload
        if record.type == "search":
            self.header = dict(payload)
            self.max_trials = payload["max_trials"]
        elif record.type == "extended":
            self.max_trials = payload["max_trials"]
            self.finished = None
            self.exhausted = False
        elif record.type == "reopened":
            self._reopen(self.trials[payload["trial"]])
        elif record.type == "proposed":
            self.trials.append(Trial(payload["trial"], dict(payload["parameters"]), payload["generator"]))
            self.finished = None
        elif record.type == "started":
            trial = self.trials[payload["trial"]]
            trial.open_jobs[payload["replicate"]] = payload["job"]
            trial.kept_jobs.pop(payload["replicate"], None)
            if payload["job"] not in trial.jobs:
                trial.jobs.append(payload["job"])
            self.next_job = max(self.next_job, payload["job"] + 1)
        elif record.type == "submitted":
            self.trials[payload["trial"]].ids[payload["replicate"]] = payload["id"]
        elif record.type in ("result", "job_failed"):
            self._end_job(record.type, payload)
        elif record.type == "completed":
            self.trials[payload["trial"]].reason = None
            self.trials[payload["trial"]].status = "completed"
            self.concluded.append(payload["trial"])
        elif record.type in ("failed", "raced_out"):
            trial = self.trials[payload["trial"]]
            trial.status = "failed" if record.type == "failed" else "raced_out"
            trial.reason = payload["reason"]
            if record.type == "raced_out":
                trial.forecast = (payload["forecast"], payload["standard_error"])
                self.concluded.append(trial.index)
        elif record.type == "exhausted":
            self.exhausted = True
        elif record.type == "stopped":
            if payload["cause"] == "failures":
                self.forgiven_failures = self.num_failed
            self.usage_error_trial = payload.get("trial")
        elif record.type == "finished":
            self.finished = dict(payload)

    def _reopen(self, trial: Trial) -> None:
        trial.status, trial.reason = "open", None
        trial.failures.clear()
        self.finished, self.exhausted, self.forgiven_failures = None, False, 0

    def _end_job(self, type_: str, payload: Mapping[str, Any]) -> None:
        trial, replicate = self.trials[payload["trial"]], payload["replicate"]
        trial.open_jobs.pop(replicate, None)
        trial.ids.pop(replicate, None)
        trial.seconds += payload["seconds"]
        if type_ == "result":
            trial.results[replicate] = {
                name: Measurement.from_json(fields) for name, fields in payload["metrics"].items()
            }
        else:
            trial.failures[replicate] = trial.failures.get(replicate, 0) + 1
            if payload.get("keeps_job", False):  # older ledgers know no such thing
                trial.kept_jobs[replicate] = payload["job"]
            trial.reason = payload["reason"]

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
    def num_completed(self) -> int:
        """Trials that count towards `max_trials`; one that lost a race has had its turn."""
        return len(self.with_status("completed", "raced_out"))

    @property
    def num_failed(self) -> int:
        """Failed trials since the beginning."""
        return len(self.with_status("failed"))

"""What a trial's jobs measured, and their mean and standard error over replicates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One metric of one trial."""

    mean: float
    sem: float | None = None
    replicates: tuple[float, ...] | None = None
    # of a trial that was spared its last replicates; the error is that of the forecast
    is_forecast: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether every number in it is finite."""
        values = [self.mean, *self.values]
        return all(math.isfinite(value) for value in values) and (self.sem is None or math.isfinite(self.sem))

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the replicates, or the only one."""
        return self.replicates if self.replicates is not None else (self.mean,)

    def to_json(self) -> dict[str, Any]:
        """Plain fields for the ledger. The measurement is finite."""
        fields: dict[str, Any] = {"mean": self.mean}
        if self.sem is not None:
            fields["sem"] = self.sem
        if self.replicates is not None:
            fields["replicates"] = list(self.replicates)
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Measurement":
        """The measurement that `to_json` wrote."""
        replicates = fields.get("replicates")
        return cls(fields["mean"], fields.get("sem"), None if replicates is None else tuple(replicates))


Measurements = dict[str, Measurement]


def over_replicates(values: Sequence[float]) -> Measurement:
    """Mean and, from two values on, standard error over replicates of one trial."""
    if not all(math.isfinite(value) for value in values):
        return Measurement(math.nan, None, tuple(values))
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Measurement(mean, None, tuple(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Measurement(mean, math.sqrt(variance / len(values)), tuple(values))


def combine_replicates(jobs: Sequence[Measurements]) -> Measurements:
    """One trial's measurements from those of its replicate jobs. It has only metrics that every job returned."""
    names = [name for name in jobs[0] if all(name in job for job in jobs)]
    combined = {}
    for name in names:
        combined[name] = over_replicates([value for job in jobs for value in job[name].values])
    return combined

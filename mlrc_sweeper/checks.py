"""Checks a record's fields, and that it follows from the records before it."""

from collections.abc import Mapping
from datetime import datetime
from types import NoneType
from typing import Any

from mlrc_sweeper.records import Record
from mlrc_sweeper.state import SearchState

# types that JSON is read as; a bool is no int here
_Fields = Mapping[str, tuple[type, ...]]
_TRIAL: _Fields = {"trial": (int,)}
_JOB: _Fields = {**_TRIAL, "replicate": (int,), "job": (int,)}
_ENDED: _Fields = {**_JOB, "seconds": (int, float)}
_FIELDS: Mapping[str, _Fields] = {
    "search": {"created": (str,), "versions": (dict,), "max_trials": (int,), "seed": (int,), "signature": (dict,)},
    "extended": {"max_trials": (int,)},
    "reopened": _TRIAL,
    "proposed": {**_TRIAL, "parameters": (dict,), "generator": (str,)},
    "started": _JOB,
    "submitted": {**_JOB, "id": (str,)},
    "result": {**_ENDED, "metrics": (dict,)},
    "job_failed": {**_ENDED, "reason": (str,)},
    "completed": _TRIAL,
    "failed": {**_TRIAL, "reason": (str,)},
    "raced_out": {**_TRIAL, "reason": (str,), "forecast": (int, float), "standard_error": (int, float)},
    "stopped": {"cause": (str,)},
    "finished": {"cause": (str,)},
}
_SIGNATURE: _Fields = {
    "search space": (dict,),
    "objective": (dict,),
    "parameter constraints": (list,),
    "outcome constraints": (list,),
    "status quo": (dict, NoneType),
    "is_noisy": (bool,),
    "noise": (str, NoneType),
    "generation": (dict,),
}
_LARGEST = 1e300
_LARGEST_OF = {"max_trials": 10**6, "seconds": 1e10, "job": 2**53, "replicate": 2**53}
_MEASUREMENT: _Fields = {"mean": (int, float), "sem": (int, float, NoneType), "replicates": (list, NoneType)}


def check(record: Record, state: SearchState) -> None:
    """Checks a record before a state follows it.

    A record of a type that this version does not know needs no fields.

    Args:
        record: The next record of the ledger.
        state: The state after the records before it.

    Raises:
        ValueError: It has a wrong field, or no sweeper writes it here. The text continues "the record ...".
    """
    if type(record.type) is not str:
        raise ValueError("has a type that is no text")
    fields = _FIELDS.get(record.type, {})
    _check_fields(record.payload, fields, "payload")
    if (record.type == "search") != (state.header is None):
        raise ValueError("is a second header" if record.type == "search" else "stands before the header of the search")
    _check_ranges(record.payload)
    if "trial" in fields:
        _check_trial(record, state)
    if record.type == "search":
        _check_signature(record.payload["signature"])
        _check_time(record.payload["created"], "created")
    elif record.type == "proposed":
        for name, value in record.payload["parameters"].items():
            if type(value) not in (bool, int, float, str):
                raise ValueError(f"has a value of `{name}` that is neither number nor text")
    elif record.type == "result":
        for name, measured in record.payload["metrics"].items():
            _check_measurement(measured, f"metric `{name}`")
    elif record.type in ("completed", "raced_out"):
        _check_measured(record.payload["trial"], state)


def _check_fields(value: Any, fields: _Fields, what: str) -> None:
    if type(value) is not dict:
        raise ValueError(f"has a {what} that is no object")
    for name, types in fields.items():
        if type(value.get(name)) not in types:
            raise ValueError(f"has a {what} without a valid `{name}`")


def _check_ranges(payload: Mapping[str, Any]) -> None:
    if "time" in payload:
        _check_time(payload["time"], "time")
    for name, largest in _LARGEST_OF.items():
        value = payload.get(name, 0)
        if type(value) not in (int, float) or not 0 <= value <= largest:
            raise ValueError(f"has a payload without a valid `{name}`")


def _check_time(value: Any, name: str) -> None:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"has a payload without a valid `{name}`") from None


def _check_trial(record: Record, state: SearchState) -> None:
    trial, num_trials = record.payload["trial"], len(state.trials)
    if record.type == "proposed" and trial != num_trials:
        raise ValueError(f"proposes trial {trial} where {num_trials} is due")
    if record.type != "proposed" and not 0 <= trial < num_trials:
        raise ValueError(f"is about trial {trial}, which was not proposed")


def _check_signature(signature: Any) -> None:
    _check_fields(signature, _SIGNATURE, "signature")
    if not signature["objective"]:
        raise ValueError("has a signature without a valid `objective`")
    for name, entry in signature["search space"].items():
        # "(other overrides)" is no parameter
        if not name.startswith("("):
            _check_fields(entry, {"type": (str,), "values": (list, NoneType)}, f"parameter `{name}`")
            if entry["type"] == "choice" and not entry.get("values"):
                raise ValueError(f"has a parameter `{name}` without a valid `values`")


def _check_measurement(measured: Any, what: str) -> None:
    _check_fields(measured, _MEASUREMENT, what)
    values = measured.get("replicates")
    if values is not None and (not values or any(type(value) not in (int, float) for value in values)):
        raise ValueError(f"has a {what} without valid `replicates`")
    for value in (measured["mean"], measured.get("sem") or 0, *(values or ())):
        if not -_LARGEST <= value <= _LARGEST:
            raise ValueError(f"has a {what} with a number that is out of range")


def _check_measured(trial: int, state: SearchState) -> None:
    assert state.header is not None
    missing = state.header["signature"]["objective"].keys() - state.trials[trial].measurements.keys()
    if missing:
        raise ValueError(f"concludes trial {trial}, which has no result for {', '.join(sorted(missing))}")

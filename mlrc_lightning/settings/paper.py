"""The hyperparameters that the paper found best, read from the reference data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.names import setting_name
from mlrc_lightning.reading import suggestion
from mlrc_lightning.reference import rows

FULL_PRECISION = "paper, full precision"
"""Every value has the six digits of the original's plots."""
AS_PRINTED = "paper, as printed"
"""Some value is the truncated one of the paper's page."""
_NOT_APPLICABLE = "N/A"


@dataclass(frozen=True)
class Optimum:
    """The best setting of one search of the paper.

    Attributes:
        source: How exactly the values are known, `FULL_PRECISION` or `AS_PRINTED`.
        values: By configuration key.
    """

    source: str
    values: dict[str, float]


def published_optimum(
    paper_name: str | None, setting: str, batch_size: int, parameter_names: Mapping[str, str]
) -> Optimum:
    """Returns the best hyperparameters of one loss on one dataset at one batch size.

    A parameter that the page calls N/A (SoftTriple's regulariser on SOP) is left out.

    Args:
        paper_name: The loss as the paper's page calls it; None for one that the paper does not have.
        setting: The dataset as the reference data calls it: cub200, cars196 or sop.
        batch_size: 32, or 256 on cub200.
        parameter_names: Configuration key of each of the reference data's parameter names.

    Raises:
        ConfigError: The paper has no such search; the message names those it has.
    """
    name = setting_name(setting, batch_size)
    printed = _by_parameter("optimal_hyperparameters.csv")
    exact = _by_parameter("optimal_hyperparameters_full_precision.csv")
    of_this_search = {key: text for key, text in printed.items() if key[:2] == (paper_name, name)}
    if not of_this_search:
        raise ConfigError(
            f"hyperparameters=paper: the paper has no optimum of the loss {paper_name!r} at {name!r}"
            f" (dataset.paper_setting={setting}, batch_size={batch_size})."
            f" It has those of {', '.join(sorted({loss for loss, _, _ in printed}))};"
            f" each at {', '.join(sorted({setting_of_it for _, setting_of_it, _ in printed}))}."
        )
    known = {key: text for key, text in of_this_search.items() if text != _NOT_APPLICABLE}
    values = {
        configuration_key(key[2], paper_name, parameter_names): float(exact.get(key, text))
        for key, text in known.items()
    }
    return Optimum(FULL_PRECISION if known.keys() <= exact.keys() else AS_PRINTED, values)


@cache
def _by_parameter(file: str) -> dict[tuple[str, str, str], str]:
    return {(row["loss"], row["setting"], row["parameter"]): row["value"] for row in rows(file)}


def search_space(
    paper_name: str | None, setting: str, batch_size: int, parameter_names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns the searched hyperparameters of one loss, by configuration key, as the sweeper reads them.

    The paper searched at batch 256 on CUB200 alone. Another dataset at 256 takes its own search at 32, and where that
    has no bounds (FastAP), CUB200's at 256.

    Args:
        paper_name: The loss as the paper's page calls it; None for one that the paper does not have.
        setting: The dataset as the reference data calls it: cub200, cars196 or sop.
        batch_size: Of the setting.
        parameter_names: Configuration key of each of the reference data's parameter names.

    Returns:
        For example `{"loss.function.margin": {"type": "range", "bounds": [0.0, 90.0], "log_scale": False}}`;
        empty where the paper has no such search.

    Raises:
        ConfigError: A parameter of the reference data has no configuration key.
    """
    searches = _searches()
    suffix = f"_batch{batch_size}"
    at_this_batch_size = [setting_of_it for setting_of_it, _ in searches if setting_of_it.endswith(suffix)]
    candidates = [(name, paper_name) for name in (f"{setting}{suffix}", setting, *at_this_batch_size)]
    found = next((key for key in candidates if key in searches), None)
    space: dict[str, dict[str, Any]] = {}
    for row in [] if found is None else searches[found]:
        key = configuration_key(row["parameter"], paper_name, parameter_names)
        bounds = [float(row["low"]), float(row["high"])]
        space[key] = {
            "type": "range",
            "bounds": [int(bound) for bound in bounds] if row["type"] == "int" else bounds,
            "log_scale": row["scale"] == "log",
        }
    return space


def configuration_key(parameter: str, paper_name: str | None, parameter_names: Mapping[str, str]) -> str:
    """Returns the configuration key of a parameter of the reference data.

    Raises:
        ConfigError: `loss.parameter_names` has none for it.
    """
    if parameter not in parameter_names:
        raise ConfigError(
            f"loss.parameter_names: expected a key for {parameter!r} of {paper_name}."
            f"{suggestion(parameter, parameter_names)}"
        )
    return parameter_names[parameter]


@cache
def _searches() -> dict[tuple[str, str], list[dict[str, str]]]:
    grouped: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows("search_spaces.csv"):
        grouped.setdefault((row["setting"], row["loss"]), []).append(row)
    return grouped

"""What each search of the paper searched, read from the reference data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.reference import rows
from mlrc_lightning.schema import suggestion


def search_space(
    paper_name: str | None, setting: str, batch_size: int, parameter_names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns the searched hyperparameters of one loss, by configuration key, as the sweeper reads them.

    The paper searched at batch 256 on CUB200 alone. Another dataset at 256 takes its own search at 32, and where that
    has no bounds (FastAP), CUB200's at 256.

    Args:
        paper_name: The loss as the paper's page calls it; None for one that the paper does not have.
        setting: The dataset as the reference data calls it: cub200, cars196 or sop.
        batch_size: Of the benchmark.
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

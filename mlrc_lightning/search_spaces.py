"""What each search of the paper searched, read from the reference data."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.schema import suggestion


def search_space(
    paper_name: str, setting: str, batch_size: int, parameter_names: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns the searched hyperparameters of one loss, by configuration key, as the sweeper reads them.

    Args:
        paper_name: The loss as the paper's page calls it.
        setting: The dataset as the reference data calls it: cub200, cars196 or sop.
        batch_size: 256 takes the search at batch 256 where the paper has one for the dataset.
        parameter_names: Configuration key of each of the reference data's parameter names.

    Returns:
        For example `{"loss.function.margin": {"type": "range", "bounds": [0.0, 90.0], "log_scale": False}}`;
        empty where the paper has no such search.

    Raises:
        ConfigError: A parameter of the reference data has no configuration key.
    """
    spaces = _rows()
    wanted = f"{setting}_batch{batch_size}"
    rows = spaces.get((wanted if any(s == wanted for s, _ in spaces) else setting, paper_name), [])
    space = {}
    for row in rows:
        name = row["parameter"]
        if name not in parameter_names:
            raise ConfigError(
                f"loss.parameter_names: expected a key for {name!r} of {paper_name}.{suggestion(name, parameter_names)}"
            )
        number = int if row["type"] == "int" else float
        space[parameter_names[name]] = {
            "type": "range",
            "bounds": [number(row["low"]), number(row["high"])],
            "log_scale": row["scale"] == "log",
        }
    return space


@cache
def _rows() -> dict[tuple[str, str], list[dict[str, str]]]:
    text = resources.files("mlrc_lightning.reference").joinpath("search_spaces.csv").read_text(encoding="utf-8")
    grouped: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in csv.DictReader(text.splitlines()):
        grouped.setdefault((row["setting"], row["loss"]), []).append(row)
    return grouped

"""The hyperparameters that the paper found best, read from the reference data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.reference import rows
from mlrc_lightning.search_spaces import configuration_key

FULL_PRECISION = "paper, full precision"
"""Every value has the six digits of the original's plots."""
AS_PRINTED = "paper, as printed"
"""Some value is the truncated one of the paper's page."""
_BATCH_SIZE_OF_THE_DATASETS = 32
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
    name = setting if batch_size == _BATCH_SIZE_OF_THE_DATASETS else f"{setting}_batch{batch_size}"
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

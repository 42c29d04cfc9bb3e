"""Makes a table by its name: finds the results, lays them out, writes the files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder, write_bytes, write_json
from mlrc_lightning.reference import PAPER_SETTINGS
from mlrc_lightning.reporting.tables.cells import Page
from mlrc_lightning.reporting.tables.cited import reported_page, toy_page
from mlrc_lightning.reporting.tables.hyperparameters import hyperparameters_page
from mlrc_lightning.reporting.tables.manifest import manifest
from mlrc_lightning.reporting.tables.render import RENDERERS
from mlrc_lightning.reporting.tables.setting import composition_of_results, setting_page
from mlrc_lightning.results.runs import RunSet, run_sets
from mlrc_lightning.results.searches import SearchResult, searches
from mlrc_lightning.settings.composition import Composition, compose, overrides_of

FOLDER = "tables"
"""Below `outputs`."""
CITED = {"reported": reported_page, "toy": toy_page}
HYPERPARAMETERS = "hyperparameters"
MANIFEST_ENDING = "manifest.json"


def make_page(
    name: str, overrides: Sequence[str], protocol: str | None, source: str, outputs: Path
) -> tuple[Page, list[RunSet], list[SearchResult]]:
    """Returns a table, and all sets of runs and searches that were found.

    Args:
        name: One of `CITED`, `HYPERPARAMETERS`, an experiment, a dataset, or a setting that has results.
        overrides: Of the configuration that the table is of.
        protocol: Whose runs count; None for the configuration's.
        source: Where the hyperparameters of the runs come from.
        outputs: Where the results lie.

    Raises:
        ConfigError: There is no such table.
    """
    if name in CITED:
        return CITED[name](), [], []
    composed, is_configured = _composition(name, overrides, protocol, outputs)
    found = searches(outputs)
    if name == HYPERPARAMETERS:
        keys = parameter_keys(config_folder())
        return hyperparameters_page(composed.protocol, outputs, found, keys, composed.max_trials), [], found
    sets = run_sets(outputs)
    if not is_configured:
        wanted = composed.num_runs, composed.max_trials
        own = composition_of_results(composed.setting, composed.protocol, sets, found, composed)
        composed = replace(own, num_runs=wanted[0], max_trials=wanted[1])
    return setting_page(name, composed, source, outputs, sets, found), sets, found


def _composition(name: str, overrides: Sequence[str], protocol: str | None, outputs: Path) -> tuple[Composition, bool]:
    """Returns what a table is of, and whether the configuration is that of its protocol."""
    own_name = None
    try:
        beginning = overrides_of(next(iter(PAPER_SETTINGS)) if name == HYPERPARAMETERS else name)
    except ConfigError:
        # the results of a dataset of one's own are named as its owner said
        known = sorted({path.parent.name for path in outputs.glob(f"*/{name}") if path.is_dir()})
        if not known:
            raise
        if protocol is None and len(known) > 1:
            raise ConfigError(
                f"{name} has results of several protocols: choose --protocol {' or '.join(known)}."
            ) from None
        beginning, own_name, protocol = [], name, protocol or known[0]
    composed = compose([*beginning, *overrides], outputs)
    wanted = replace(composed, setting=own_name or composed.setting, protocol=protocol or composed.protocol)
    return wanted, own_name is None and protocol in (None, composed.protocol)


def write_page(
    page: Page, outputs: Path, formats: Sequence[str], sets: Sequence[RunSet], found: Sequence[SearchResult]
) -> list[Path]:
    """Writes a table in some formats, and its manifest, made from all results found. Returns the files.

    Raises:
        ConfigError: A format is unknown.
    """
    unknown = sorted(set(formats) - RENDERERS.keys())
    if unknown:
        raise ConfigError(f"--format {unknown[0]}: expected all, or one of {', '.join(RENDERERS)}.")
    folder = outputs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rendered = {f"{page.name}.{ending}": RENDERERS[ending](page).encode() for ending in formats}
    for name, content in rendered.items():
        write_bytes(folder / name, content)
    path = folder / f"{page.name}.{MANIFEST_ENDING}"
    write_json(path, manifest(page, outputs, sets, found, rendered))
    return [*(folder / name for name in rendered), path]


def replace_block(path: Path, name: str, markdown: str) -> bool:
    """Puts a table between its marks in a text file: `<!-- NAME table -->` and `<!-- end of NAME table -->`.

    Returns:
        Whether the file was changed.

    Raises:
        ConfigError: The file has no such marks.
    """
    begin, end = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    text = path.read_text(encoding="utf-8")
    if not re.search(f"{re.escape(begin)}.*{re.escape(end)}", text, re.DOTALL):
        raise ConfigError(f"{path}: expected the marks {begin} and {end}, in this order.")
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    new = f"{head}{begin}\n{markdown.strip()}\n{end}{tail}"
    if new == text:
        return False
    write_bytes(path, new.encode())
    return True


def parameter_keys(conf: Path) -> dict[str, dict[str, str]]:
    """Returns the configuration key of each of the reference data's parameter names, of each loss in `conf/loss`."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted((conf / "loss").glob("*.yaml")):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 (a safe loader)
        found[content["name"]] = dict(content["parameter_names"] or {})
    return found


NAMES = (*PAPER_SETTINGS, HYPERPARAMETERS, *CITED)
"""The tables that `make tables` makes."""

"""The page of a search: its plot, what it found beside the paper's optimum, every trial."""

from __future__ import annotations

from collections.abc import Mapping

from mlrc_lightning.reference import PAPER_SETTINGS
from mlrc_lightning.reporting.site.charts import search_chart
from mlrc_lightning.reporting.site.contents import Contents, loss_title, search_status, setting_title
from mlrc_lightning.reporting.site.index_page import LEGEND, describe
from mlrc_lightning.reporting.site.layout import INDEX, document, link, pairs, table, text
from mlrc_lightning.reporting.site.places import search_page, set_page
from mlrc_lightning.reporting.statistics import paper_curve
from mlrc_lightning.reporting.tables.cells import Cell, Number, percent
from mlrc_lightning.reporting.tables.render import cell_text
from mlrc_lightning.results.runs import has_best_hyperparameters
from mlrc_lightning.results.searches import SearchResult


def search_document(
    contents: Contents,
    search: SearchResult,
    parameter_names: Mapping[str, str],
    paper_values: Mapping[tuple[str, str, str], Cell],
    max_trials: int,
) -> str:
    """Returns the page of a search.

    Args:
        contents: Of the report.
        search: Which.
        parameter_names: The paper's name of each configuration key that it searched.
        paper_values: Its optima by loss, setting and parameter.
        max_trials: Trials wanted.
    """
    page = search_page(contents.relative(search.folder))
    name, setting = loss_title(search.loss), setting_title(search.setting)
    curve = paper_curve(search.setting, name) if search.setting in PAPER_SETTINGS else None
    paper = [] if curve is None else [float(value) for value in curve]
    status = search_status(search, max_trials)
    body = [
        f'<p class="lede">{text(status)}{"; still to go on" if search.finished is None else ""}. Validation MAP@R, mean'
        " over folds; a thin line spans the folds of a trial.</p>",
        LEGEND,
        f"<figure><div>{search_chart(describe(search, paper, f'{name}, {setting}', status), search.trials, paper)}"
        "</div></figure>",
        "<h2>Best trial</h2>",
        *_best(search, parameter_names, paper_values, setting),
        "<h2>Runs of this search’s settings</h2>",
        *_runs(contents, search, page),
        "<h2>Trials</h2>",
        _trials(search),
        "<h2>Where it is from</h2>",
        pairs(
            [
                ("Protocol", f"<code>{text(search.protocol)}</code>"),
                ("Name", text(search.name)),
                ("Folder", f"<code>{text(contents.relative(search.folder))}</code>"),
                ("Ended", text(search.finished or "not yet")),
                ("Time of its trials", f"{sum(trial.seconds for trial in search.trials) / 3600:.2f} hours"),
                *((f"Package {name}", text(version)) for name, version in sorted(search.versions.items())),
            ]
        ),
    ]
    return document(page, f"Search: {name} on {setting}", body, [(INDEX, "Overview")])


def _best(
    search: SearchResult, names: Mapping[str, str], paper: Mapping[tuple[str, str, str], Cell], setting: str
) -> list[str]:
    best = search.best
    if best is None or best.mean is None:
        return ["<p>No trial is finished yet.</p>"]
    is_papers = search.setting in PAPER_SETTINGS
    rows = []
    for key, entry in sorted(search.search_space.items()):
        if entry.get("type") == "fixed":
            continue
        value = best.parameters.get(key)
        row = [
            (f"<code>{text(key)}</code>", None),
            (text(_range(entry)), None),
            (text(_value(value)), float(value) if isinstance(value, int | float) else None),
        ]
        if is_papers:
            theirs = paper.get((loss_title(search.loss), search.setting, names.get(key, "")))
            number = theirs.value if isinstance(theirs, Number) else None
            row.append(("–" if theirs is None else text(cell_text(theirs)), number))
        rows.append(row)
    caption = f"Best hyperparameters, and the paper’s on {setting}" if is_papers else "Best hyperparameters"
    headings = ("Hyperparameter", "Searched in", "Ours", *(["Paper"] if is_papers else []))
    return [
        f"<p>Trial {best.index}: validation MAP@R {percent(best.mean)}.</p>",
        table(caption, headings, rows, sortable=False, numeric=(2, 3)),
    ]


def _runs(contents: Contents, search: SearchResult, page: str) -> list[str]:
    items = []
    for run_set in contents.sets:
        place = run_set.protocol, run_set.setting, run_set.loss, run_set.source
        if place == (search.protocol, search.setting, search.loss, "search"):
            matches = has_best_hyperparameters(run_set, search)
            words = {True: "its best trial", False: "an earlier best, or another search", None: "not known yet"}[
                matches
            ]
            target = set_page(contents.relative(run_set.folder))
            items.append(f"<li>{link(target, page, run_set.folder.name)}: {words}</li>")
    return [f"<ul>{''.join(items)}</ul>"] if items else ["<p>None yet.</p>"]


def _trials(search: SearchResult) -> str:
    tuned = [key for key, entry in sorted(search.search_space.items()) if entry.get("type") != "fixed"]
    rows = []
    for trial in search.trials:
        values = [trial.parameters.get(key) for key in tuned]
        folds = " · ".join(percent(value) for value in trial.values)
        rows.append(
            (
                (str(trial.index), float(trial.index)),
                (text(trial.state.replace("_", " ") + (f": {trial.reason}" if trial.reason else "")), None),
                ("–" if trial.mean is None else percent(trial.mean), trial.mean),
                (folds or "–", None),
                *((text(_value(value)), float(value) if isinstance(value, int | float) else None) for value in values),
                (f"{trial.seconds:.0f}", trial.seconds),
            )
        )
    headings = ("Trial", "State", "MAP@R", "By fold", *(key.removeprefix("loss.") for key in tuned), "Seconds")
    numeric = (2, *range(4, 5 + len(tuned)))
    return table("All trials, MAP@R in per cent", headings, rows, numeric=numeric)


def _range(entry: Mapping[str, object]) -> str:
    bounds, values = entry.get("bounds"), entry.get("values")
    if isinstance(bounds, list):
        scale = ", log scale" if entry.get("log_scale") else ""
        return f"{_value(bounds[0])} to {_value(bounds[1])}{scale}"
    return ", ".join(_value(value) for value in values) if isinstance(values, list) else "–"


def _value(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else str(value)

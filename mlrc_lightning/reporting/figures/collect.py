"""Finds what each figure shows among results and reference data, and says in words what it shows or lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import read_npz
from mlrc_lightning.names import (
    EMBEDDINGS,
    MAP_AT_R,
    NEIGHBORS_FILE,
    PAIRWISE_FILE,
    PROJECTION_FILE,
    RECORD_FILE,
    SOURCES,
    UNTRAINED,
)
from mlrc_lightning.reference import PAPER_DATASETS, rows
from mlrc_lightning.reporting.figures import NAMES
from mlrc_lightning.reporting.figures.comparison import pairwise_heat_map
from mlrc_lightning.reporting.figures.reality import (
    OURS_128,
    OURS_512,
    PAPER_128,
    PAPER_512,
    PAPERS,
    Bar,
    Column,
    accuracy_over_years,
    mean_improvement,
    relative_improvements,
)
from mlrc_lightning.reporting.figures.retrieval import NeighborSheet, neighbor_sheet, projection
from mlrc_lightning.reporting.figures.search import TrialPoint, optimisation
from mlrc_lightning.reporting.figures.toy import SCORES, ToyEmbedding, toy_embeddings
from mlrc_lightning.reporting.figures.training import learning_curves
from mlrc_lightning.reporting.intervals import Interval, t_interval
from mlrc_lightning.reporting.pairs import read_pairs
from mlrc_lightning.reporting.statistics import paper_curve
from mlrc_lightning.reporting.tables.catalog import LOSSES, title_of
from mlrc_lightning.reporting.tables.setting import value_at
from mlrc_lightning.results.choice import Choice
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.results.runs import RunSet, run_sets
from mlrc_lightning.results.searches import SearchResult, searches

FOLDER = "figures"
"""Of the figures, below the folder of results; nothing in it is read as a result."""
TOY_FILE = Path(FOLDER) / "inputs" / "toy.npz"

AXES = {"precision_at_1": "Precision@1 (%)", "mean_average_precision_at_r": "MAP@R (%)"}
BASELINES = ("Contrastive", "Triplet")
NOT_AVERAGED = (*BASELINES, "FastAP")
"""Left out of Figure 3's means: both baselines, and FastAP, docs/protocol.md, §8."""
_Collect = Callable[[Path, Sequence["RunSet"]], Iterator["Drawing | Lacking"]]
_REPRODUCE = "python train.py -m stage=reproduce"


@dataclass(frozen=True)
class Drawing:
    """A figure with its name and words.

    Attributes:
        path: Below the folder of figures, without suffix.
        title: One line.
        description: What it shows, in words and numbers.
        figure: To be saved.
    """

    path: PurePosixPath
    title: str
    description: str
    figure: Figure


@dataclass(frozen=True)
class Lacking:
    """Why a figure, or a part of it, is not drawn, and what to do. Or what could not be read."""

    text: str
    is_damaged: bool = False


@dataclass(frozen=True)
class Measured:
    """All reproductions of one protocol from one source of hyperparameters.

    Attributes:
        protocol: Name and hash.
        source: search, paper or given.
        accuracies: In per cent, by setting, loss (its name in the paper), embedding and metric.
    """

    protocol: str
    source: str
    accuracies: Mapping[tuple[str, str, str, str], Interval]


def collect(name: str, outputs: Path, sets: Sequence[RunSet] | None = None) -> Iterator[Drawing | Lacking]:
    """Draws all figures of one name.

    Args:
        name: One of `NAMES`.
        outputs: Folder of results.
        sets: All sets of runs in it, where they are known; their records are then read once for several names.
    """
    try:
        yield from _COLLECT[name](outputs, run_sets(outputs) if sets is None else sets)
    except RecordError as error:
        yield Lacking(f"{name}: {error}", is_damaged=True)


def measured(sets: Sequence[RunSet], searches: Sequence[SearchResult]) -> list[Measured]:
    """Groups tested reproductions by protocol and source, and averages each cell over the runs that tables count.

    What needs no training has no place among losses by year.
    """
    tested = [run_set for run_set in sets if run_set.complete and run_set.loss != UNTRAINED]
    found = []
    for protocol, source in sorted({(run_set.protocol, run_set.source) for run_set in tested}):
        own = [run_set for run_set in tested if (run_set.protocol, run_set.source) == (protocol, source)]
        accuracies = {}
        for setting in dict.fromkeys(run_set.setting for run_set in own):
            choice = Choice(protocol, setting, source, sets, searches)
            for loss in dict.fromkeys(run_set.loss for run_set in own if run_set.setting == setting):
                run_set = choice.of(loss)
                assert run_set is not None
                outcomes = [run.outcome for run in choice.comparable(run_set)]
                for embedding in EMBEDDINGS:
                    for metric in AXES:
                        values = [value_at(outcome, f"test.{embedding}.{metric}") for outcome in outcomes]
                        # models of some folds alone have no concatenated embedding
                        known = [value for value in values if value is not None]
                        if known:
                            accuracies[setting, title_of(loss), embedding, metric] = t_interval(known).scaled(100)
        found.append(Measured(protocol, source, accuracies))
    return found


def loss_years() -> dict[str, int]:
    """Returns the year of each of the paper's losses, oldest first."""
    return {row.title: row.year for row in LOSSES if row.is_of_the_paper}


def _figure_1(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    path = outputs / TOY_FILE
    if not path.exists():
        yield Lacking(f"figure_1: no {path}; python -m mlrc_lightning figure figure_1 computes it.")
        return
    arrays = _load(path, [f"{name}_{part}" for name in "abc" for part in ("points", "labels", "scores")])
    embeddings = [
        ToyEmbedding(
            name,
            arrays[f"{name}_points"],
            arrays[f"{name}_labels"],
            dict(zip(SCORES, arrays[f"{name}_scores"].tolist(), strict=True)),
        )
        for name in "abc"
    ]
    paper = {
        row["embedding"]: {key: float(text) for key, text in row.items() if key != "embedding"}
        for row in rows("figure_1.csv")
    }
    title = "Figure 1: clustering scores hardly tell these embeddings apart, retrieval scores do"
    scores = "; ".join(
        f"({e.name}) " + ", ".join(f"{SCORES[key]} {100 * value:.1f}" for key, value in e.scores.items())
        for e in embeddings
    )
    yield Drawing(
        PurePosixPath("figure_1"),
        title,
        "Three embeddings in the plane, two classes of 1000 points, uniform in strips: (a) each class in two strips,"
        " the inner ones touching; (b) one wide strip each, touching; (c) one strip each, apart."
        f" Recomputed, in per cent: {scores}. Beside them the scores that the paper prints; the points are drawn anew,"
        " so they agree up to the draw.",
        toy_embeddings(title, embeddings, paper),
    )


def _figure_2a(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    panels = {
        title: [
            Column(row["method"], int(row["year"]), (Bar(PAPERS, float(row[key]) if row[key] else None),))
            for row in rows("figure_2a.csv")
        ]
        for key, title in PAPER_DATASETS.items()
    }
    title = "Figure 2a: Precision@1 over the years, as papers reported it"
    yield Drawing(
        PurePosixPath("figure_2a"),
        title,
        f"Bars of {len(rows('figure_2a.csv'))} methods in order of year, digitised from Musgrave et al. 2020."
        f" {_ranges(panels)} Contrastive, Triplet and Semihard Mining are averages of reported baselines.",
        accuracy_over_years(title, AXES["precision_at_1"], panels),
    )


def _figure_2b(metric: str) -> _Collect:
    name = "figure_2b" if metric == "precision_at_1" else "figure_2b_map_at_r"
    label = AXES[metric].removesuffix(" (%)")

    def draw(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
        paper = {key[:3]: value for key, value in _paper("concatenated_512").items() if key[2] == metric}
        years = loss_years()
        titled = f"Figure 2b: {label} over the years, measured alike"
        panels = {
            text: [
                Column(loss, year, (Bar(PAPER_512, *_cell(paper.get((key, loss, metric)))),))
                for loss, year in years.items()
            ]
            for key, text in PAPER_DATASETS.items()
        }
        words = f"{label} of the concatenated embeddings by loss, in order of year, with 95 % intervals."
        yield Drawing(
            PurePosixPath(name),
            titled,
            f"{words} {_ranges(panels)} Source: Musgrave et al. 2020, Tables 4 to 6.",
            accuracy_over_years(titled, AXES[metric], panels),
        )
        ours = measured(sets, searches(outputs))
        if not ours:
            yield Lacking(f"{name}: the paper's values alone, no tested reproductions in {outputs}; run {_REPRODUCE}.")
        for own in ours:
            cells = {key: value for key, value in own.accuracies.items() if key[2:] == ("concatenated", metric)}
            settings = sorted({setting for setting, *_ in cells}, key=lambda b: ([*PAPER_DATASETS, b].index(b), b))
            is_papers = any(setting in PAPER_DATASETS for setting in settings)
            if is_papers:
                settings = [*PAPER_DATASETS, *(setting for setting in settings if setting not in PAPER_DATASETS)]
            losses = years | dict.fromkeys(sorted({loss for _, loss, *_ in cells} - years.keys()))
            panels = {}
            for setting in settings:
                panels[PAPER_DATASETS.get(setting, setting)] = [
                    Column(
                        loss,
                        year,
                        (
                            *([Bar(PAPER_512, *_cell(paper.get((setting, loss, metric))))] if is_papers else []),
                            Bar(OURS_512, *_cell(cells.get((setting, loss, "concatenated", metric)))),
                        ),
                    )
                    for loss, year in losses.items()
                ]
            if not panels:
                yield Lacking(f"{name}: {own.protocol} has no concatenated accuracies; train all folds.")
                continue
            title = f"{label} over the years, {SOURCES.get(own.source, own.source)} ({own.protocol})"
            counts = sorted({value.n for value in cells.values()})
            num_runs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            yield Drawing(
                PurePosixPath(own.protocol, f"{name}_{own.source}"),
                title,
                f"{words} {_ranges(panels)} Ours: means over {num_runs} training runs; a dash is a missing value.",
                accuracy_over_years(title, AXES[metric], panels),
            )

    return draw


def _figure_3(baseline: str) -> _Collect:
    name = "figure_3a" if baseline == "Contrastive" else "figure_3b"

    def draw(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
        averaged = [loss for loss in loss_years() if loss not in NOT_AVERAGED]
        papers = {row["dataset"]: float(row["papers"]) for row in rows("figure_3.csv") if row["baseline"] == baseline}
        paper = {name: _paper(name) for name in ("separated_128", "concatenated_512")}

        def bars(accuracies: Mapping[tuple[str, str, str], Interval], dataset: str, series: str) -> Bar:
            own = {
                loss: value.mean for (d, loss, m), value in accuracies.items() if (d, m) == (dataset, "precision_at_1")
            }
            return Bar(series, mean_improvement(own, baseline, averaged))

        theirs = {
            key: [
                Bar(PAPERS, papers[key]),
                bars(paper["separated_128"], key, PAPER_128),
                bars(paper["concatenated_512"], key, PAPER_512),
            ]
            for key in PAPER_DATASETS
        }
        words = (
            f"Mean relative improvement of Precision@1 over {baseline}, in per cent. Reality: mean over"
            f" {len(averaged)} losses, without {', '.join(NOT_AVERAGED[:-1])} and {NOT_AVERAGED[-1]}."
        )
        title = f"Figure {name[-2:]}: improvement over {baseline}, papers and reality"
        groups = {PAPER_DATASETS[key]: value for key, value in theirs.items()}
        yield Drawing(
            PurePosixPath(name), title, f"{words} {_bars_in_words(groups)}", relative_improvements(title, groups)
        )
        for own in measured(sets, searches(outputs)):
            accuracies = {
                embedding: {(b, loss, m): v for (b, loss, e, m), v in own.accuracies.items() if e == embedding}
                for embedding in ("separated", "concatenated")
            }
            ours = {
                setting: [
                    bars(accuracies["separated"], setting, OURS_128),
                    bars(accuracies["concatenated"], setting, OURS_512),
                ]
                for setting in dict.fromkeys([*PAPER_DATASETS, *sorted({key[0] for key in own.accuracies})])
            }
            if all(bar.value is None for pair in ours.values() for bar in pair):
                yield Lacking(
                    f"{name}: {own.protocol} ({own.source}) has on no setting all of {baseline} and the"
                    f" {len(averaged)} losses that the mean is over; run {_REPRODUCE} for the missing ones."
                )
                continue
            if any(key[0] in PAPER_DATASETS for key in own.accuracies):
                groups = {text: [*theirs[key], *ours[key]] for key, text in PAPER_DATASETS.items()}
            else:
                groups = {key: pair for key, pair in ours.items() if key not in PAPER_DATASETS}
            title = f"Improvement over {baseline}, {SOURCES.get(own.source, own.source)} ({own.protocol})"
            yield Drawing(
                PurePosixPath(own.protocol, f"{name}_{own.source}"),
                title,
                f"{words} {_bars_in_words(groups)}",
                relative_improvements(title, groups),
            )

    return draw


def _optimisation(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    found = searches(outputs)
    if not any(search.trials for search in found):
        yield Lacking(f"optimisation: no searches in {outputs}; run python train.py -m loss=… dataset=…")
    for search in found:
        ended = [trial for trial in search.trials if trial.state != "open"]
        if not ended:
            continue
        points = [TrialPoint(trial.index, trial.mean, trial.values if trial.mean else ()) for trial in ended]
        loss = title_of(search.loss)
        curve = paper_curve(search.setting, loss)
        paper = [] if curve is None else curve.tolist()
        title = f"{loss} on {search.setting}: {len(points)} trials ({search.protocol})"
        best = search.best
        words = f"the best reached {100 * best.mean:.2f}" if best and best.mean else "no trial has a value"
        theirs = f" The paper's own search reached {100 * paper[-1]:.2f} in {len(paper)} trials." if paper else ""
        yield Drawing(
            PurePosixPath(*search.folder.relative_to(outputs).parts, "optimisation"),
            title,
            f"Validation MAP@R in per cent, mean over folds, of {len(points)} trials; {words}; {search.num_failed}"
            f" failed.{theirs}",
            optimisation(title, points, paper),
        )


def _learning_curves(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    folders = [run.folder for run_set in sets for run in run_set.runs]
    folders += [path.parent for path in outputs.glob(f"*/*/*/train/*/{RECORD_FILE}")]
    folders += [folder for search in searches(outputs) if (folder := _best_trial(search)) is not None]
    drawn = False
    for folder in sorted(folders):
        path = folder / RECORD_FILE
        try:
            record = read_json(path, TrialRecord) if path.exists() else None
        except RecordError as error:
            yield Lacking(f"learning_curves: {error}", is_damaged=True)
            continue
        if record is None or not record.folds:
            continue
        drawn = True
        relative = folder.relative_to(outputs)
        title = f"{title_of(record.loss)} on {record.setting}, {'/'.join(relative.parts[3:]) or folder.name}"
        words = "; ".join(
            f"fold {fold.fold}: epoch {fold.selected_epoch} of {fold.epochs[-1].epoch} selected, MAP@R"
            f" {100 * fold.val['mean_average_precision_at_r']:.2f}"
            for fold in record.folds
        )
        yield Drawing(
            PurePosixPath(*relative.parts, "learning_curves"),
            title,
            f"Training loss and validation MAP@R in per cent by epoch. {words}.",
            learning_curves(title, record.folds),
        )
    if not drawn:
        yield Lacking(f"learning_curves: no trained trials in {outputs}; run python train.py")


def _best_trial(search: SearchResult) -> Path | None:
    """Returns the folder of a search's best trial, wherever below the search its trials are."""
    if search.best is None:
        return None
    name = f"{search.best.index}/{RECORD_FILE}"
    return next((path.parent for path in sorted(search.folder.rglob(name))), None)


def _projection(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    paths = _stored(outputs, PROJECTION_FILE)
    if not paths:
        yield Lacking(f"projection: no {PROJECTION_FILE} in {outputs}; the first run of a setting stores it.")

    def drawn(path: Path) -> Drawing:
        arrays = _load(path, ["points", "labels", "class_names"])
        names = arrays["class_names"].tolist()
        title = f"Test embeddings, t-SNE: {_place(outputs, path)}"
        return Drawing(
            PurePosixPath(*path.parent.relative_to(outputs).parts, "projection"),
            title,
            f"{len(arrays['points'])} test images of {len(np.unique(arrays['labels']))} classes, projected by t-SNE;"
            " the largest classes have a mark each. Distances between groups mean nothing.",
            projection(title, arrays["points"], arrays["labels"], names),
        )

    yield from _each(drawn, paths)


def _neighbors(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    paths = _stored(outputs, NEIGHBORS_FILE)
    if not paths:
        yield Lacking(f"neighbors: no {NEIGHBORS_FILE} in {outputs}; the first run of a setting stores it.")

    def drawn(path: Path) -> Drawing:
        arrays = _load(path, ["queries", "neighbors", "similarities", "labels", "thumbnails", "class_names"])
        names = tuple(arrays.pop("class_names").tolist())
        sheet = NeighborSheet(**arrays, class_names=names)
        right = sheet.labels[sheet.neighbors] == sheet.labels[sheet.queries][:, None]
        title = f"Nearest test images: {_place(outputs, path)}"
        words = "; ".join(
            f"{names[sheet.labels[query]]}: {int(row.sum())} of {len(row)} right"
            for query, row in zip(sheet.queries, right, strict=True)
        )
        return Drawing(
            PurePosixPath(*path.parent.relative_to(outputs).parts, "neighbors"),
            title,
            f"A row a query, its nearest images from left to right; right ones have a solid frame and a check mark,"
            f" wrong ones a dashed frame and a cross. {words}.",
            neighbor_sheet(title, sheet),
        )

    yield from _each(drawn, paths)


def _each(draw: Callable[[Path], Drawing], paths: Sequence[Path]) -> Iterator[Drawing | Lacking]:
    for path in paths:
        try:
            yield draw(path)
        except RecordError as error:
            yield Lacking(str(error), is_damaged=True)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"expected arrays that belong together, found others ({error}). Remove it."
            yield Lacking(f"{path}: {reason}", is_damaged=True)


def _pairwise_tests(outputs: Path, sets: Sequence[RunSet]) -> Iterator[Drawing | Lacking]:
    paths = _stored(outputs, PAIRWISE_FILE)
    if not paths:
        yield Lacking(f"pairwise_tests: no {PAIRWISE_FILE} in {outputs}; it needs tested reproductions of two losses.")
    for path in paths:
        tests = read_pairs(path)
        present = list(dict.fromkeys(name for test in tests for name in (test.loss_a, test.loss_b)))
        order = list(loss_years())
        losses = sorted(present, key=lambda loss: (order.index(loss) if loss in order else len(order), loss))
        significant = sum(test.p_holm is not None and test.p_holm <= 0.05 for test in tests)
        title = f"Pairwise tests: {_place(outputs, path)}"
        yield Drawing(
            PurePosixPath(*path.parent.relative_to(outputs).parts, "pairwise_tests"),
            title,
            f"Difference of every two of {len(losses)} losses, row minus column, in percentage points; {significant} of"
            f" {len(tests)} pairs differ at the 5 % level after Holm's correction.",
            pairwise_heat_map(title, losses, tests),
        )


def _stored(outputs: Path, name: str) -> list[Path]:
    return [path for path in sorted(outputs.rglob(name)) if path.relative_to(outputs).parts[0] != FOLDER]


def _load(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        arrays = read_npz(path)
        return {name: arrays[name] for name in names}
    except KeyError as error:
        raise RecordError(f"{path}: expected the arrays {', '.join(names)}, found no {error}. Remove it.") from error


def _place(outputs: Path, path: Path) -> str:
    """Names a stored file by its folders below the protocol's."""
    return " / ".join(path.parent.relative_to(outputs).parts[1:]) or path.parent.name


def _paper(embedding: str) -> dict[tuple[str, str, str], Interval]:
    """Returns the paper's means by dataset, loss and metric, in per cent. They are over 10 runs."""
    return {
        (row["dataset"], row["loss"], row["metric"]): Interval(
            float(row["mean"]), float(row["ci95"]) if row["ci95"] else None, 10
        )
        for row in rows("paper_tables.csv")
        if row["embedding"] == embedding
    }


def _cell(accuracy: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if accuracy is None else (accuracy.mean, accuracy.half_width)


def _ranges(panels: Mapping[str, Sequence[Column]]) -> str:
    """Says of each panel and series which methods are lowest and highest."""
    who = {PAPERS: "papers", PAPER_512: "Musgrave et al.", OURS_512: "ours"}
    sentences = []
    for name, columns in panels.items():
        for series in dict.fromkeys(bar.series for column in columns for bar in column.bars):
            values = sorted((bar.value, column.label) for column in columns for bar in column.bars
                            if bar.series == series and bar.value is not None)  # fmt: skip
            ends = [f"{value:.1f} ({label})" for value, label in values[:1] + values[-1:]]
            sentences.append(f"{name}, {who[series]}: {' to '.join(ends) or 'none yet'}.")
    return " ".join(sentences)


def _bars_in_words(groups: Mapping[str, Sequence[Bar]]) -> str:
    who = {PAPERS: "papers", PAPER_128: "separated", PAPER_512: "concatenated",
           OURS_128: "ours separated", OURS_512: "ours concatenated"}  # fmt: skip
    return " ".join(
        f"{name}: "
        + ", ".join(f"{who[bar.series]} {'missing' if bar.value is None else f'{bar.value:.1f}'}" for bar in bars)
        + "."
        for name, bars in groups.items()
    )


_COLLECT: dict[str, _Collect] = {
    "figure_1": _figure_1,
    "figure_2a": _figure_2a,
    "figure_2b": _figure_2b("precision_at_1"),
    "figure_2b_map_at_r": _figure_2b(MAP_AT_R),
    "figure_3a": _figure_3("Contrastive"),
    "figure_3b": _figure_3("Triplet"),
    "optimisation": _optimisation,
    "learning_curves": _learning_curves,
    "projection": _projection,
    "neighbors": _neighbors,
    "pairwise_tests": _pairwise_tests,
}
assert _COLLECT.keys() == NAMES.keys()

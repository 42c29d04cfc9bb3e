"""Pages of runs: a set of one setting with all its accuracies, and each run with curves, images, configuration."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import read_npz
from mlrc_lightning.names import (
    BASELINES,
    EMBEDDINGS,
    MAP_AT_R,
    METRICS,
    NEIGHBORS_FILE,
    NOT_READ,
    PROJECTION_FILE,
    SOURCES,
    UNTRAINED,
)
from mlrc_lightning.reading import leaves
from mlrc_lightning.reporting.intervals import t_interval
from mlrc_lightning.reporting.site.charts import learning_curves
from mlrc_lightning.reporting.site.contents import Contents, loss_title, runs_status, setting_title
from mlrc_lightning.reporting.site.layout import INDEX, document, link, pairs, table, text
from mlrc_lightning.reporting.site.places import run_page, set_page
from mlrc_lightning.reporting.tables.cells import percent
from mlrc_lightning.reporting.tables.setting import value_at
from mlrc_lightning.results.records import TrialRecord, read_evaluations
from mlrc_lightning.results.runs import COMPLETE, RunSet
from mlrc_lightning.settings.composition import Composition


def set_document(contents: Contents, run_set: RunSet, composed: Composition) -> str:
    """Returns the page of a set of runs: each run's accuracies, and their means as the table has them."""
    folder = contents.relative(run_set.folder)
    page = set_page(folder)
    fields = _fields(run_set)
    rows = []
    for run in run_set.runs:
        outcome = run.outcome
        name = f"Run {run.number}"
        has_page = outcome is not None or run.damage is not None
        words = link(run_page(contents.relative(run.folder)), page, name) if has_page else text(name)
        values = [value_at(outcome, field) if run.state == COMPLETE else None for field in fields]
        rows.append(
            (
                (words, float(run.number)),
                (text(run.state), None),
                *(("–" if value is None else percent(value), value) for value in values),
                (str(_num_test_uses(run.folder, outcome)), float(_num_test_uses(run.folder, outcome))),
            )
        )
    headings = ("Run", "State", *fields.values(), "Uses of the test split")
    means = []
    for field, title in fields.items():
        measured = [value_at(run.outcome, field) for run in run_set.complete]
        known = [value for value in measured if value is not None]
        if known:
            interval = t_interval(known)
            half = "" if interval.half_width is None else f" ± {percent(interval.half_width)}"
            n = f"{interval.n} runs" if interval.n > 1 else "1 run: no interval"
            means.append((title, f"{percent(interval.mean)}{half} ({n})"))
    again = sorted(path.parent.name for path in run_set.folder.glob("*/record.json") if not path.parent.name.isdigit())
    body = [
        f'<p class="lede">{text(runs_status(run_set, composed))}; '
        f"{text(SOURCES.get(run_set.source, run_set.source))}. Test accuracies in per cent.</p>",
        table("Runs", headings, rows, numeric=range(2, 3 + len(fields))),
        "<h2>Mean and 95 % t-interval over the runs</h2>",
        pairs(means) if means else "<p>No run is tested yet.</p>",
    ]
    if again:
        items = "".join(f"<li>{link(run_page(f'{folder}/{name}'), page, name)}</li>" for name in again)
        body += ["<h2>Runs repeated from their records</h2>", f"<p>They count in no mean.</p><ul>{items}</ul>"]
    outcome = next((run.outcome for run in run_set.runs if run.outcome is not None), None)
    if outcome is not None:
        body += ["<h2>Setting</h2>", _setting(outcome)]
    name = loss_title(run_set.loss)
    title = f"Runs: {name} on {setting_title(run_set.setting)}, {run_set.folder.name}"
    return document(page, title, body, [(INDEX, "Overview")])


def run_document(
    contents: Contents, folder: str, record: TrialRecord, draw_projection: Callable[[Path, str], str]
) -> str:
    """Returns the page of one run or single trial.

    Args:
        contents: Of the report.
        folder: Of the run, below `outputs`.
        record: Of the run.
        draw_projection: From the stored projection of a run to HTML.
    """
    page = run_page(folder)
    where = contents.outputs / folder
    number = PurePosixPath(folder).name
    what = f"run {number}" if number.isdigit() else number
    name = loss_title(record.loss)
    title = f"{name} on {setting_title(record.setting)}, {what}"
    trail = [(INDEX, "Overview")]
    parent = PurePosixPath(folder).parent
    if parent.parent.name == "reproduce":
        trail.append((set_page(str(parent)), f"Runs of {parent.name}"))
    body = [_outcome(record, folder)]
    body += ["<h2>Test accuracies</h2>", *_accuracies(record)]
    if record.folds:
        charts = [
            f"<div><h3>Fold {fold.fold}</h3>{learning_curves(fold, _fold_in_words(fold, record))}</div>"
            for fold in record.folds
        ]
        body += [
            "<h2>Learning curves</h2>",
            "<p>By epoch; the dotted line is the selected epoch, epoch 0 the untrained model.</p>",
            f'<div class="charts">{"".join(charts)}</div>',
            _folds(record),
        ]
    draws = {
        PROJECTION_FILE: ("Test embeddings in the plane", lambda path: draw_projection(path, title)),
        NEIGHBORS_FILE: ("Nearest test images", _neighbors),
    }
    for file, (heading, draw) in draws.items():
        if (where / file).exists():
            body += [f"<h2>{heading}</h2>", _drawn(contents, f"{folder}/{file}", draw)]
    body += ["<h2>Uses of the test split</h2>", *_test_uses(where, record)]
    body += ["<h2>Environment</h2>", _environment(record), "<h2>Provenance</h2>", _provenance(record)]
    body += ["<h2>Configuration</h2>", _settings(record)]
    return document(page, title, body, trail)


def _drawn(contents: Contents, name: str, draw: Callable[[Path], str]) -> str:
    """Returns a drawing of stored arrays. Of those that are damaged the reason, which the overview lists too."""
    try:
        return draw(contents.outputs / name)
    except RecordError as error:
        reason = str(error)
    except (IndexError, TypeError, ValueError) as error:
        reason = f"expected arrays that belong together, found others ({error}). Remove the file."
    contents.damaged[name] = reason
    return f"<p>{text(name)}: {NOT_READ}: {text(reason)}</p>"


def _fields(run_set: RunSet) -> dict[str, str]:
    """Returns what is shown of each run: dotted keys of the record, with their titles."""
    if run_set.loss == UNTRAINED:
        names = next((run.outcome.test.baselines for run in run_set.complete if run.outcome and run.outcome.test), {})
        shown = [name for name in BASELINES if isinstance(names.get(name), Mapping)]
        return {f"test.baselines.{name}.{MAP_AT_R}": f"{BASELINES[name]}, MAP@R" for name in shown}
    return {
        f"test.{embedding}.{metric}": f"{title}, {name}"
        for embedding, title in EMBEDDINGS.items()
        for metric, name in METRICS.items()
    }


def _outcome(record: TrialRecord, folder: str) -> str:
    entries = [("Status", text(record.status))]
    if record.failure is not None:
        entries.append(("Failed because", text(record.failure)))
    entries += [
        ("Stage", text(record.stage)),
        ("Seed", text(record.seed)),
        ("Begun", text(record.started_at)),
        ("Took", f"{record.seconds:.0f} s"),
        ("Protocol", f"<code>{text(record.protocol)}</code>"),
        ("Folder", f"<code>{text(folder)}</code>"),
    ]
    if record.val is not None:
        entries.insert(1, ("Validation MAP@R, mean over folds", percent(record.val[MAP_AT_R])))
    return pairs(entries)


def _accuracies(record: TrialRecord) -> list[str]:
    test = record.test
    if test is None:
        return ["<p>Not tested.</p>"]
    measured: list[tuple[str, Mapping[str, Any] | None]] = [
        ("Concatenated", test.concatenated),
        ("Separated, mean of the folds", test.separated),
        *((f"Fold {fold}", values) for fold, values in sorted(test.separated_folds.items(), key=lambda f: int(f[0]))),
        *((BASELINES.get(name, name), values) for name, values in test.baselines.items()),
    ]
    rows = []
    for name, values in measured:
        found = [None if values is None else values.get(metric) for metric in METRICS]
        rows.append(((text(name), None), *(("–" if v is None else percent(v), v) for v in found)))
    lines = [table("Test classes, per cent", ("Embedding", *METRICS.values()), rows, sortable=False, numeric=(1, 2, 3))]
    lines.append(f"<p>{test.num_queries} queries; {test.num_without_relevant} images alone in their class.</p>")
    if test.notes:
        lines.append(f"<ul>{''.join(f'<li>{text(note)}</li>' for note in test.notes)}</ul>")
    return lines


def _fold_in_words(fold: Any, record: TrialRecord) -> str:
    return (
        f"Fold {fold.fold}: training loss and validation MAP@R over {fold.epochs[-1].epoch if fold.epochs else 0}"
        f" epochs; epoch {fold.selected_epoch} selected with MAP@R {percent(fold.val[MAP_AT_R])}"
    )


def _folds(record: TrialRecord) -> str:
    rows = [
        (
            (f"Fold {fold.fold}", float(fold.fold)),
            (percent(fold.val[MAP_AT_R]), fold.val[MAP_AT_R]),
            (str(fold.selected_epoch), float(fold.selected_epoch)),
            (str(fold.epochs[-1].epoch) if fold.epochs else "–", None),
            (text(fold.stopped_because), None),
            ("yes" if fold.beats_untrained else "no", None),
            (f"{len(fold.train_classes)} / {len(fold.val_classes)}", None),
            (f"{fold.seconds:.0f}", fold.seconds),
        )
        for fold in record.folds
    ]
    headings = (
        "Fold", "Validation MAP@R", "Selected epoch", "Last epoch", "Stopped by", "Better than untrained",
        "Classes trained / validated on", "Seconds",
    )  # fmt: skip
    return table("Folds", headings, rows, sortable=False, numeric=(1, 2, 3, 7))


def _neighbors(path: Path) -> str:
    names = ("queries", "neighbors", "similarities", "labels", "thumbnails", "class_names")
    try:
        stored = read_npz(path)
        queries, neighbors, similarities, labels, thumbnails, class_names = (stored[name] for name in names)
    except KeyError as error:
        raise RecordError(f"{path}: expected the arrays {', '.join(names)}, found {error}. Remove it.") from error
    images = [_jpeg(pixels) for pixels in thumbnails]

    def item(kind: str, index: int, words: str, caption: str) -> str:
        return (
            f'<li class="{kind}"><img src="{images[index]}" alt="{text(words)}" width="64" height="64">{caption}</li>'
        )

    rows = []
    for query, nearest, values in zip(queries, neighbors, similarities, strict=True):
        own = str(class_names[labels[query]])
        items = [item("query", query, f"Query: {own}", text(own))]
        for rank, (index, value) in enumerate(zip(nearest, values, strict=True), start=1):
            name, is_right = str(class_names[labels[index]]), labels[index] == labels[query]
            words = f"Neighbour {rank}: {name}, {'right' if is_right else 'wrong'}"
            caption = f"✓ {value:.2f}" if is_right else f"✗ {value:.2f} {text(name)}"
            items.append(item("right" if is_right else "wrong", index, words, caption))
        rows.append(f"<li><ol>{''.join(items)}</ol></li>")
    return (
        "<p>A row a query, then its nearest images with their cosine similarity: ✓ and a solid frame of the query’s"
        f' class, ✗ and a dashed frame of another.</p><ul class="neighbors">{"".join(rows)}</ul>'
    )


def _jpeg(pixels: np.ndarray[Any, Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _num_test_uses(folder: Path, record: TrialRecord | None) -> int:
    later: int = sum(evaluation.get("split") == "test" for evaluation in read_evaluations(folder))
    return later + (1 if record is not None and record.test is not None else 0)


def _test_uses(folder: Path, record: TrialRecord) -> list[str]:
    evaluations = read_evaluations(folder)
    total = _num_test_uses(folder, record)
    lines = [f"<p>The test split was used {'once' if total == 1 else f'{total} times'}.</p>"]
    items = [] if record.test is None else [f"<li>{text(record.test.opened_at)}: test, after training</li>"]
    items += [
        f"<li>{text(entry.get('evaluated_at', 'at an unknown time'))}: {text(entry.get('split'))}, by evaluate</li>"
        for entry in evaluations
    ]
    return [*lines, f"<ul>{''.join(items)}</ul>"] if items else lines


def _environment(record: TrialRecord) -> str:
    environment = record.environment
    code = environment.get("code") or {}
    changes = {True: ", with changes", False: "", None: ", unknown whether changed"}[code.get("has_changes")]
    gpus = environment.get("gpus") or []
    return pairs(
        [
            ("Code", f"<code>{text(code.get('commit') or 'unknown revision')}</code>{changes}"),
            ("Python", text(environment.get("python", "unknown"))),
            ("Platform", text(environment.get("platform", "unknown"))),
            ("Processor", text(f"{environment.get('processor', 'unknown')}, {environment.get('num_cpus')} CPUs")),
            ("GPUs", text(", ".join(gpus) or "none")),
            *((f"Package {name}", text(v)) for name, v in sorted((environment.get("packages") or {}).items())),
        ]
    )


def _provenance(record: TrialRecord) -> str:
    entries = [
        (f"Data: {key}", text(value))
        for key, value in sorted(record.dataset.items())
        if not isinstance(value, list | dict)
    ]
    entries += [
        (f"Fold {fold.fold}, {part}", f"SHA-256 <code>{text(digest)}</code>")
        for fold in record.folds
        for part, digest in sorted(fold.weight_digests.items())
    ]
    return pairs(entries)


def _setting(record: TrialRecord) -> str:
    loss = {"loss": record.settings.get("loss", {})}
    return pairs([(key, text(value)) for key, value in leaves(loss) if not key.startswith("loss.search_space")])


def _settings(record: TrialRecord) -> str:
    found: Sequence[tuple[str, object]] = list(leaves(record.settings))
    lines = "\n".join(f"{key}: {'null' if value is None else value}" for key, value in found)
    return f"<details><summary>All {len(found)} values</summary><pre>{text(lines)}</pre></details>"

"""Everything beside training: python -m mlrc_lightning prepare | show | status | evaluate | reproduce | figure | …"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path

from mlrc_lightning.cli.errors import run
from mlrc_lightning.cli.words import split_overrides
from mlrc_lightning.errors import ConfigError
from mlrc_lightning.names import EMBEDDING_CHOICES, EMBEDDINGS, MAP_AT_R, METRICS, RECORD_FILE, SEARCH
from mlrc_lightning.reporting.figures import NAMES

_WITH_OVERRIDES = ("prepare", "evaluate", "reproduce", "table", "compare", "study")
"""Commands with overrides as for train.py, KEY=VALUE, anywhere behind the command."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlrc_lightning", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="extract, check and decode a dataset before the first run")
    prepare.add_argument("--config-dir", type=Path, help="your own YAML files, as for train.py")
    prepare.add_argument("--verify", action="store_true", help="compare all images decoded before with their digests")
    status = commands.add_parser("status", help="where searches stand, also while they run")
    status.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="searches in and below it")
    show = commands.add_parser("show", help="print the table of finished trials")
    show.add_argument("runs", nargs="+", type=Path, help="folders or record.json files of trials")
    export = commands.add_parser("export-original", help="write a trial's models as trunk_best.pth, embedder_best.pth")
    export.add_argument("run", type=Path, help="folder of a finished trial with trunk=bn_inception")
    export.add_argument("folder", type=Path, help="gets Test50_50_Partitions4_<fold>/saved_models/")
    figure = commands.add_parser("figure", help="draw stored results as PNG, SVG and HTML into OUTPUTS/figures")
    figure.add_argument("names", nargs="+", choices=["all", *NAMES], metavar="NAME", help=f"all, {', '.join(NAMES)}")
    figure.add_argument("--outputs", type=Path, default=Path("outputs"), help="results below it")
    figure.add_argument("--format", choices=["png", "svg", "html", "all"], default="all")
    evaluate = commands.add_parser("evaluate", help="evaluate the kept models of finished runs again")
    evaluate.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders or record.json files of runs")
    evaluate.add_argument("--split", choices=("test", "val", "train"), default="test", help="classes to retrieve in")
    evaluate.add_argument("--embedding", choices=EMBEDDING_CHOICES, default="both")
    reproduce = commands.add_parser(
        "reproduce", help="train runs again from their records, and compare; or run experiment folders of the original"
    )
    reproduce.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="folders or record.json files of runs, or folders with configs/*.yaml of powerful-benchmarker",
    )
    reproduce.add_argument("--name", help="of the new folder, beside the old one; otherwise OLD-again")
    reproduce.add_argument("--exact", action="store_true", help="demand the same packages and, on a CPU, equal weights")
    reproduce.add_argument(
        "--print", action="store_true", help="of the original's folders only print the command of train.py that does it"
    )
    for command in (evaluate, reproduce):
        command.add_argument("--data-root", help="where the datasets are: data_root=FOLDER")
        command.add_argument(
            "--config-dir",
            type=Path,
            action="append",
            default=[],
            help="your own configuration, whose classes are trusted",
        )
    calibration = commands.add_parser(
        "calibration", help="check intervals and tests on synthetic results whose truth is known"
    )
    calibration.add_argument("--draws", type=int, default=1_000, help="how many of each kind (default 1,000)")
    calibration.add_argument("--seed", type=int, default=0, help="of all draws")
    table = commands.add_parser("table", help="a table of the paper from all results so far, with its manifest")
    table.add_argument("name", help="cub200, cars196, sop, cub200_batch256, hyperparameters, reported, toy, demo, …")
    table.add_argument("--outputs", type=Path, default=Path("outputs"), help="where results are")
    table.add_argument("--format", default="all", help="md, tex, csv, html, or all of them")
    table.add_argument("--protocol", help="whose runs; by default that of the configuration")
    table.add_argument("--source", default=SEARCH, help="of the hyperparameters: search, paper or given")
    table.add_argument("--into", type=Path, help="a text file whose block <!-- NAME table --> gets the table")
    compare = commands.add_parser("compare", help="test every two losses of a setting's table on the same queries")
    compare.add_argument("name", help="of the table")
    compare.add_argument("--outputs", type=Path, default=Path("outputs"), help="where results are")
    compare.add_argument("--protocol", help="whose runs; by default that of the configuration")
    compare.add_argument("--source", default=SEARCH, help="of the hyperparameters: search, paper or given")
    compare.add_argument(
        "--metric",
        choices=tuple(METRICS),
        default=MAP_AT_R,
    )
    compare.add_argument("--embedding", choices=tuple(EMBEDDINGS), help="by default what the runs have")
    report = commands.add_parser("report", help="a static site of all results so far, in OUTPUTS/report")
    report.add_argument("--outputs", type=Path, default=Path("outputs"), help="where results are")
    verify = commands.add_parser("verify", help="compute every cell of a table again from the stored results")
    verify.add_argument("table", help="name of a table, or its manifest")
    verify.add_argument("--outputs", type=Path, default=Path("outputs"), help="where results are")
    study = commands.add_parser("study", help="run the searches and reproductions of a table that are missing")
    study.add_argument("name", help="of an experiment or a dataset: cub200, cars196, sop, cub200_batch256, demo, …")
    study.add_argument("--losses", nargs="*", default=[], help="by default the paper's 14")
    study.add_argument("--hyperparameters", default="search", help="search, or paper, which skips the searches")
    study.add_argument("--runs", type=int, help="reproductions of each loss")
    study.add_argument("--trials", type=int, help="of each search")
    study.add_argument("--launcher", help="slurm, local, or any of Hydra's")
    study.add_argument("--jobs", type=int, default=1, help="losses side by side")
    study.add_argument("--outputs", type=Path, default=Path("outputs"), help="where results go")
    study.add_argument("--plan", action="store_true", help="only tell how many models are left, and how long they take")
    study.add_argument("--dry-run", action="store_true", help="only print the commands")
    for name in _WITH_OVERRIDES:
        taking = commands.choices[name]
        taking.epilog = "Overrides as for train.py, such as dataset=cub200 num_runs=3, may stand anywhere."
    submit = commands.add_parser("submit", help="run a search as a SLURM job of its own, and return")
    submit.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="e.g. --sbatch=--time=3-00:00")
    submit.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line before the command")
    submit.add_argument("--log", type=Path, default=Path("outputs"), metavar="FOLDER", help="of the log (outputs)")
    submit.add_argument("command_line", nargs=argparse.REMAINDER, help="python train.py -m loss=arcface …")
    return parser


def _table(parsed: argparse.Namespace) -> int:
    from mlrc_lightning.reporting.tables.make import make_page, replace_block, write_page
    from mlrc_lightning.reporting.tables.render import RENDERERS, markdown
    from mlrc_lightning.results.damaged import damaged_results, listed

    page, sets, found = make_page(parsed.name, parsed.overrides, parsed.protocol, parsed.source, parsed.outputs)
    formats = list(RENDERERS) if parsed.format == "all" else [parsed.format]
    written = write_page(page, parsed.outputs, formats, sets, found)
    print(markdown(page))
    if parsed.into is not None and replace_block(parsed.into, parsed.name, markdown(page)):
        written.append(parsed.into)
    print("Written:", *written)
    return _list_damaged(listed(damaged_results(parsed.outputs, sets)) if sets or found else [])


def _list_damaged(lines: list[str]) -> int:
    """Prints what could not be read, and returns the exit code."""
    print("\n".join(lines), file=sys.stderr, end="\n" * bool(lines))
    return int(bool(lines))


def _report(parsed: argparse.Namespace) -> int:
    from mlrc_lightning.reporting.site.memory import is_made_of, remember, state

    outputs = parsed.outputs
    found = state(outputs)
    index = is_made_of(outputs, found)
    if index is None:
        from mlrc_lightning.reporting.site.site import build  # matplotlib: a second

        index, damaged = build(outputs)
        if not damaged:  # which are listed again the next time
            remember(outputs, found)
        print(f"Written: {index}")
        return _list_damaged(damaged)
    print(f"Nothing has changed: {index}")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from mlrc_lightning.reporting.tables.make import FOLDER, MANIFEST_ENDING
    from mlrc_lightning.reporting.tables.manifest import verify

    given = Path(parsed.table)
    path = given if given.suffix == ".json" else parsed.outputs / FOLDER / f"{parsed.table}.{MANIFEST_ENDING}"
    findings = verify(path, parsed.outputs)
    print("\n".join(findings) if findings else f"{path}: every input is as it was, and every cell comes out again.")
    return 1 if findings else 0


def _study(parsed: argparse.Namespace) -> int:
    from mlrc_lightning.cli.study import ALL_LOSSES, Study, plan, render_plan, run

    losses = tuple(parsed.losses) or ALL_LOSSES
    study = Study(
        parsed.name, tuple(parsed.overrides), losses, parsed.hyperparameters, parsed.runs, parsed.trials,
        parsed.launcher, parsed.outputs,
    )  # fmt: skip
    if parsed.plan:
        print(render_plan(study, plan(study), parsed.jobs))
    elif parsed.dry_run:
        print(*(step.shown() for step in plan(study) if not step.is_finished), sep="\n")
    else:
        return run(study, parsed.jobs)
    return 0


_CODES = {"verify": _verify, "study": _study, "table": _table, "report": _report}


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. What goes wrong is one message and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    overrides: list[str] = []
    if words and words[0] in _WITH_OVERRIDES:
        words, overrides = split_overrides(words)
    parser = _parser()
    parsed, rest = parser.parse_known_args(words)
    if parsed.command in ("evaluate", "reproduce") and not any(word.startswith("-") for word in rest):
        parsed.runs += map(Path, rest)  # of which argparse reads none behind an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.overrides = overrides
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def command() -> None:
        # each command imports its own: `show` must not pay for torch
        if parsed.command == "prepare":
            from mlrc_lightning.cli.prepare import prepare

            if not parsed.overrides:
                raise ConfigError("prepare: expected a dataset, as dataset=omniglot, found no override.")
            print(prepare(parsed.overrides, parsed.config_dir, parsed.verify))
        elif parsed.command == "status":
            # the plugin set is beside the package: called like any other program, and never imported
            sys.argv = ["status", "status", str(parsed.folder)]
            runpy.run_module("hydra_plugins.mlrc_ax_sweeper", run_name="__main__")
        elif parsed.command == "submit":
            from mlrc_lightning.cli.submit import submit

            print(submit(parsed.command_line, parsed.sbatch, parsed.setup, parsed.log))
        elif parsed.command == "evaluate":
            _evaluate(parsed)
        elif parsed.command == "reproduce":
            _reproduce(parsed)
        elif parsed.command == "export-original":
            from mlrc_lightning.original.models import export_original

            print("\n".join(map(str, export_original(parsed.run, parsed.folder))))
        elif parsed.command == "figure":
            from mlrc_lightning.cli.figure import draw

            damaged: list[str] = []
            for path in draw(parsed.names, parsed.outputs, parsed.format, damaged):
                print(path)
            if code := _list_damaged(damaged):
                sys.exit(code)
        elif parsed.command == "calibration":
            from mlrc_lightning.reporting.statistics import simulation

            print(simulation.render(list(simulation.calibration(parsed.draws, parsed.seed))))
        elif parsed.command in _CODES:
            if code := _CODES[parsed.command](parsed):
                sys.exit(code)
        elif parsed.command == "compare":
            from mlrc_lightning.reporting.site.comparisons import compare, render
            from mlrc_lightning.reporting.tables.make import make_page

            page, *_ = make_page(parsed.name, parsed.overrides, parsed.protocol, parsed.source, parsed.outputs)
            print(render(compare(page, parsed.outputs, parsed.metric, parsed.embedding)))
        else:
            _show(parsed.runs)

    run(command)


def _show(paths: list[Path]) -> None:
    from mlrc_lightning.reporting.tables.trial import render_trial
    from mlrc_lightning.results.records import read_evaluations, read_run

    for path in paths:
        folder, record = read_run(path)
        print(render_trial(record), "\n")
        later = sum(evaluation.get("split") == "test" for evaluation in read_evaluations(folder))
        if later:
            first = int(record.test is not None)
            print(f"Test classes opened {first + later} times: {first} after training, {later} by evaluate.\n")


def _evaluate(parsed: argparse.Namespace) -> None:
    from mlrc_lightning.cli.evaluate import evaluate

    if not parsed.runs:
        raise ConfigError("evaluate: expected the folder of a run, found none.")
    for path in parsed.runs:
        print(evaluate(path, parsed.split, parsed.embedding, parsed.config_dir, _places(parsed)), "\n", flush=True)


def _places(parsed: argparse.Namespace) -> list[str]:
    given: list[str] = parsed.overrides
    return given + ([] if parsed.data_root is None else [f"data_root={parsed.data_root}"])


def _reproduce(parsed: argparse.Namespace) -> None:
    """Runs what folders describe once more: records of ours, experiments of the original."""
    from mlrc_lightning.original.translate import is_original

    overrides = _places(parsed)
    for folder in parsed.runs:
        if is_original(folder):
            _reproduce_original(folder, overrides, parsed.print)
            continue
        if not (folder.is_file() or (folder / RECORD_FILE).is_file()):
            raise ConfigError(
                f"{folder}: expected configs/*.yaml of the original, or the {RECORD_FILE} of a run, found neither."
            )
        if parsed.print:
            raise ConfigError(f"{folder}: a run is trained again as its record says; expected no --print beside it.")
        from mlrc_lightning.cli.reproduce import reproduce

        where = {"config_folders": parsed.config_dir, "overrides": overrides}
        print(reproduce(folder, parsed.name, exact=parsed.exact, **where), "\n", flush=True)
    if not parsed.runs:
        raise ConfigError("reproduce: expected the folder of a run or of an experiment of the original, found none.")


def _reproduce_original(folder: Path, overrides: list[str], only_print: bool) -> None:
    from mlrc_lightning.original.translate import read_original

    experiment = read_original(folder, overrides)
    for unmapped in experiment.unmapped:
        print(f"not mapped: {unmapped}", file=sys.stderr)
    if only_print:
        print(experiment.command)
        return
    from mlrc_lightning.original.run import reproduce
    from mlrc_lightning.reporting.tables.trial import render_trial

    record, run_folder = reproduce(experiment)
    print(f"\n{render_trial(record)}\n\nRecord: {run_folder / RECORD_FILE}")


if __name__ == "__main__":
    main()

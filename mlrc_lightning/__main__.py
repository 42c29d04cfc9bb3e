"""Everything beside training: python -m mlrc_lightning prepare | show | status | reproduce | figure | …"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path

from mlrc_lightning.command_line import run
from mlrc_lightning.errors import ConfigError
from mlrc_lightning.figures import NAMES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlrc_lightning", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="extract, check and decode a dataset before the first run")
    prepare.add_argument("overrides", nargs="+", help="as for train.py: dataset=omniglot data_root=FOLDER …")
    prepare.add_argument("--config-dir", type=Path, help="your own YAML files, as for train.py")
    status = commands.add_parser("status", help="where searches stand, also while they run")
    status.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="searches in and below it")
    show = commands.add_parser("show", help="print the table of finished trials")
    show.add_argument("runs", nargs="+", type=Path, help="folders or record.json files of trials")
    reproduce = commands.add_parser("reproduce", help="run an experiment folder of the original again")
    reproduce.add_argument("folder", type=Path, help="with configs/*.yaml of powerful-benchmarker")
    reproduce.add_argument("overrides", nargs="*", help="as for train.py; they win over the folder's")
    reproduce.add_argument("--print", action="store_true", help="only print the command of train.py that does it")
    export = commands.add_parser("export-original", help="write a trial's models as trunk_best.pth, embedder_best.pth")
    export.add_argument("run", type=Path, help="folder of a finished trial with trunk=bn_inception")
    export.add_argument("folder", type=Path, help="gets Test50_50_Partitions4_<fold>/saved_models/")
    figure = commands.add_parser("figure", help="draw stored results as PNG, SVG and HTML into OUTPUTS/figures")
    figure.add_argument("names", nargs="+", choices=["all", *NAMES], metavar="NAME", help=f"all, {', '.join(NAMES)}")
    figure.add_argument("--outputs", type=Path, default=Path("outputs"), help="results below it")
    figure.add_argument("--format", choices=["png", "svg", "html", "all"], default="all")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; what goes wrong is one message and exit code 2."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command == "reproduce" and not any(word.startswith("-") for word in rest):
        parsed.overrides += rest  # of which argparse reads none behind an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def command() -> None:
        # each command imports its own: `show` must not pay for torch
        if parsed.command == "prepare":
            from mlrc_lightning.prepare import prepare

            print(prepare(parsed.overrides, parsed.config_dir))
        elif parsed.command == "status":
            # the plugin set is beside the package: called like any other program, and never imported
            sys.argv = ["status", "status", str(parsed.folder)]
            runpy.run_module("hydra_plugins.mlrc_ax_sweeper", run_name="__main__")
        elif parsed.command == "reproduce":
            _reproduce(parsed.folder, parsed.overrides, only_print=parsed.print)
        elif parsed.command == "export-original":
            from mlrc_lightning.original import export_original

            print("\n".join(map(str, export_original(parsed.run, parsed.folder))))
        elif parsed.command == "figure":
            from mlrc_lightning.draw import draw

            for path in draw(parsed.names, parsed.outputs, parsed.format):
                print(path)
        else:
            from mlrc_lightning.records import RECORD_FILE, TrialRecord, read_json
            from mlrc_lightning.tables.trial import render_trial

            for path in parsed.runs:
                print(render_trial(read_json(path / RECORD_FILE if path.is_dir() else path, TrialRecord)), "\n")

    run(command)


def _reproduce(folder: Path, overrides: list[str], only_print: bool) -> None:
    """Runs what a folder describes once more."""
    from mlrc_lightning.original_configs import is_original, read_original

    if not is_original(folder):
        raise ConfigError(f"{folder}: expected configs/*.yaml of the original, found no experiment folder.")
    experiment = read_original(folder, overrides)
    for unmapped in experiment.unmapped:
        print(f"not mapped: {unmapped}", file=sys.stderr)
    if only_print:
        print(experiment.command)
        return
    from mlrc_lightning.original import reproduce
    from mlrc_lightning.records import RECORD_FILE
    from mlrc_lightning.tables.trial import render_trial

    record, run_folder = reproduce(experiment)
    print(f"\n{render_trial(record)}\n\nRecord: {run_folder / RECORD_FILE}")


if __name__ == "__main__":
    main()

"""Everything beside training: python -m mlrc_lightning prepare | show | status."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path

from mlrc_lightning.command_line import run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlrc_lightning", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="extract, check and decode a dataset before the first run")
    prepare.add_argument("overrides", nargs="+", help="as for train.py: dataset=omniglot data_root=FOLDER …")
    status = commands.add_parser("status", help="where searches stand, also while they run")
    status.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="searches in and below it")
    show = commands.add_parser("show", help="print the table of finished trials")
    show.add_argument("runs", nargs="+", type=Path, help="folders or record.json files of trials")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; what goes wrong is one message and exit code 2."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def command() -> None:
        # each command imports its own: `show` must not pay for torch
        if parsed.command == "prepare":
            from mlrc_lightning.prepare import prepare

            print(prepare(parsed.overrides))
        elif parsed.command == "status":
            # the plugin set is beside the package: called like any other program, and never imported
            sys.argv = ["status", "status", str(parsed.folder)]
            runpy.run_module("hydra_plugins.mlrc_ax_sweeper", run_name="__main__")
        else:
            from mlrc_lightning.records import RECORD_FILE, TrialRecord, read_json
            from mlrc_lightning.tables.trial import render_trial

            for path in parsed.runs:
                print(render_trial(read_json(path / RECORD_FILE if path.is_dir() else path, TrialRecord)), "\n")

    run(command)


if __name__ == "__main__":
    main()

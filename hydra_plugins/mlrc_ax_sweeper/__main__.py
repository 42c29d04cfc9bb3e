"""Commands beside the search: `python -m hydra_plugins.mlrc_ax_sweeper status|repair DIRECTORY`.

Hydra's plugin scan imports this module at every start, so the work is imported in the functions.
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hydra_plugins.mlrc_ax_sweeper", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("status", "where the searches in and below a directory stand, also while they run"),
        ("repair", "keep the valid records of a damaged ledger; the damaged file stays beside it"),
        ("report", "draw a search's plots anew, as HTML and PNG"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)

    from ._errors import SweepError

    try:
        print(_run(options.command, options.directory))  # noqa: T201
    except SweepError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _run(command: str, directory: Path) -> str:
    from ._errors import SweepError

    if command == "repair":
        from ._ledger import repair

        return repair(directory)
    if command == "report":
        from ._report import write_report

        return "\n".join(str(path) for path in write_report(directory))
    from ._status import describe, find_searches

    found = [describe(path) for path in find_searches(directory)]
    if not found:
        raise SweepError(f"Expected a ledger.jsonl in or below {directory}, found none.")
    return "\n\n".join(found)


if __name__ == "__main__":
    sys.exit(main())

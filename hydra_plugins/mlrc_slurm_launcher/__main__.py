"""Commands beside the jobs: `python -m hydra_plugins.mlrc_slurm_launcher jobs|cancel DIRECTORY`.

Hydra's plugin scan imports this module at every start, so the work is imported in the functions.
"""

import argparse
import dataclasses
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hydra_plugins.mlrc_slurm_launcher", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("jobs", "the SLURM jobs that were submitted for sweeps in and below a directory, and how they are"),
        ("cancel", "end those of them that wait or run"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", type=Path)
    options = parser.parse_args(arguments)

    from ._cluster import UnreachableError

    try:
        lines = _lines(options.directory, is_cancelling=options.command == "cancel")
    except UnreachableError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print("\n".join(lines) or f"No SLURM jobs in or below {options.directory}.")  # noqa: T201
    return 0


def _lines(directory: Path, *, is_cancelling: bool) -> list[str]:
    from ._cluster import Cluster, cancel, find_submission
    from ._files import JOB_FILE, JobFolder

    cluster = Cluster(poll_seconds=60.0)
    lines = []
    for path in sorted(directory.rglob(f".slurm/*/{JOB_FILE}")):
        files = JobFolder(path.parents[1], int(path.parent.name))
        job = files.read()
        if job is None:
            continue
        # its process may have been killed before it wrote the number down
        job_id = job.job_id or files.submission_id(job) or find_submission(str(files.attempt(job)))
        if job_id is None:
            continue
        result = files.result(dataclasses.replace(job, job_id=job_id))
        state = "COMPLETED" if result is not None and result.succeeded else cluster.state(job_id).name
        goes_on = state != "COMPLETED" and not cluster.state(job_id).is_over
        cluster.forget(job_id)
        if is_cancelling and goes_on:
            cancel(job_id)
            state = f"{state}, now cancelled"
        if goes_on or not is_cancelling:
            lines.append(f"{path.parents[2]}  job {job.number}  SLURM job {job_id}  {state}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

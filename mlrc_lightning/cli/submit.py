"""A search as a SLURM job of its own: the driver, which submits the trials' jobs and may be requeued at any moment."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlrc_lightning.errors import ConfigError

_LAUNCHER = "hydra/launcher"
_WARNING_SECONDS = 120


def submit(command: Sequence[str], sbatch_options: Sequence[str], setup: Sequence[str], log_folder: Path) -> str:
    """Submits a command as a driver job and returns at once.

    Args:
        command: As it would be typed, e.g. ["python", "train.py", "-m", "loss=arcface"]. `python` is this interpreter;
            a sweep that names no launcher gets `hydra/launcher=mlrc_slurm`.
        sbatch_options: For the driver alone, e.g. ["--time=3-00:00:00", "--partition=long"].
        setup: Shell lines that run before the command.
        log_folder: Where the driver's log goes.

    Returns:
        The job's id, its log, and how to follow and to cancel it.

    Raises:
        ConfigError: There is no SLURM, no command, or sbatch refuses.
    """
    words = _completed(command)
    if shutil.which("sbatch") is None:
        raise ConfigError("Expected `sbatch` on the PATH, found none: submit from a machine of a SLURM cluster.")
    log_folder.mkdir(parents=True, exist_ok=True)
    script = driver_script(words, sbatch_options, setup, log_folder.absolute())
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ConfigError(f"sbatch refused the job: {done.stderr.strip()}")
    job_id = done.stdout.strip().partition(";")[0]
    log = log_folder / f"driver-{job_id}.log"
    return (
        f"Job {job_id}: {shlex.join(words)}\n"
        f"  log     {log}\n"
        f"  follow  tail -f {log}; where searches stand: python -m mlrc_lightning status\n"
        f"  cancel  scancel {job_id}; trials under way go on, and the same command collects them. To end those too:\n"
        f"          python -m hydra_plugins.mlrc_slurm_launcher cancel FOLDER_OF_THE_SEARCH"
    )


def driver_script(words: Sequence[str], sbatch_options: Sequence[str], setup: Sequence[str], log_folder: Path) -> str:
    """Returns the batch script. Before its time limit, or when it is preempted, the job goes back to the queue.

    The search then continues where its ledger ends, with the jobs that ran on meanwhile.
    """
    options = [
        f"--job-name={_name(words)}",
        f"--output={log_folder}/driver-%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{_WARNING_SECONDS}",
        *sbatch_options,
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            *setup,
            f"{shlex.join(words)} &",
            "driver=$!",
            # bash answers a signal between two waits
            """trap 'echo "Time is up: back to the queue"; scontrol requeue "$SLURM_JOB_ID"' USR1""",
            'wait "$driver"; status=$?',
            'while kill -0 "$driver" 2>/dev/null; do wait "$driver"; status=$?; done',
            'exit "$status"',
            "",
        ]
    )


def _completed(command: Sequence[str]) -> list[str]:
    words = [word for number, word in enumerate(command) if number > 0 or word != "--"]
    if not words:
        raise ConfigError("Expected a command to submit, e.g. `submit python train.py -m loss=arcface`, found none.")
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    is_sweep = any(word.endswith(".py") for word in words) and any(word in ("-m", "--multirun") for word in words)
    if is_sweep and not any(word.startswith(f"{_LAUNCHER}=") for word in words):
        words.append(f"{_LAUNCHER}=mlrc_slurm")
    return words


def _name(words: Sequence[str]) -> str:
    scripts = [Path(word).stem for word in words if word.endswith(".py")]
    return f"driver-{scripts[0] if scripts else Path(words[0]).name}"


def _environment() -> dict[str, str]:
    """Returns the environment without the variables of the SLURM job that this process may itself be in."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
    }

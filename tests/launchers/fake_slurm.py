"""A SLURM in one file: `sbatch`, `srun`, `squeue`, `scontrol`, `sacct` and `scancel`, for failures that a real one
cannot be made to show. It runs batch scripts as processes of this machine.

State is in FAKE_SLURM: `<id>.json` for each job, and `answers.json`, by which a test has commands answer otherwise:

    {"sbatch": [ANSWER, …], "squeue": ANSWER, "17": {"state": "NODE_FAIL", "reason": "NodeDown"}, "sacct": ANSWER}

ANSWER is {"stdout": …, "stderr": …, "status": …}, with `"is_done_all_the_same": true` where the command is carried out
and only its answer is another; a list is used up from the front. `"hold": true` lets no job begin. A job's entry hides
its real state; `"forgotten": true` hides the job from squeue and scontrol. sacct, without an answer, says that there is
no accounting.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(os.environ.get("FAKE_SLURM", "."))


def main(name: str, arguments: list[str]) -> int:
    answers = _read(HERE / "answers.json")
    answer = answers.get(name)
    if isinstance(answer, list):
        answer = answer.pop(0) if answer else None
        (HERE / "answers.json").write_text(json.dumps(answers))
    if answer is not None:
        sys.stdout.write(answer.get("stdout", ""))
        sys.stderr.write(answer.get("stderr", ""))
        if not answer.get("is_done_all_the_same"):
            return int(answer.get("status", 0))
    commands = {"sbatch": _sbatch, "srun": _srun, "squeue": _squeue, "scontrol": _scontrol, "sacct": _sacct}
    status = commands.get(name, _scancel)(arguments)
    return status if answer is None else int(answer.get("status", 0))


def _sbatch(arguments: list[str]) -> int:
    job_id = str(len(list(HERE.glob("[0-9]*.json"))) + 1)
    script = arguments[-1]
    # SLURM runs a copy of its own: the script may be moved as soon as this returns
    copy = HERE / f"{job_id}.sh"
    copy.write_text(sys.stdin.read() if script.startswith("--") else Path(script).read_text())
    if script.startswith("--"):
        script = str(copy)
    answers = _read(HERE / "answers.json")
    process = None
    inherited = sorted(name for name in os.environ if name.startswith("SLURM_"))
    if not answers.get("hold"):
        environment = {**os.environ, "SLURM_JOB_ID": job_id, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        # a job that was requeued begins anew once it has ended
        runner = f"""restarts=0
while bash {copy}; code=$?; [ -e {HERE / job_id}.requeued ]; do
    mv {HERE / job_id}.requeued {HERE / job_id}.was_requeued
    restarts=$((restarts + 1)); export SLURM_RESTART_COUNT=$restarts
done
echo $code > {HERE / job_id}.status"""
        process = subprocess.Popen(
            ["bash", "-c", runner],
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).pid
    (HERE / f"{job_id}.json").write_text(
        json.dumps({"id": job_id, "script": script, "pid": process, "inherited": inherited})
    )
    sys.stdout.write(f"{job_id}\n" if "--parsable" in arguments else f"Submitted batch job {job_id}\n")
    return 0


def _srun(arguments: list[str]) -> int:
    files = {}
    while arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            files[option] = arguments.pop(0)
    job_id = os.environ["SLURM_JOB_ID"]
    paths = [Path(files[option].replace("%j", job_id).replace("%t", "0")) for option in ("--output", "--error")]
    with paths[0].open("a") as output, paths[1].open("a") as error:
        done = subprocess.run(arguments, check=False, stdout=output, stderr=error)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _state(job_id: str) -> dict[str, Any] | None:
    job = _read(HERE / f"{job_id}.json")
    said = _read(HERE / "answers.json").get(job_id, {})
    if not job or said.get("forgotten"):
        return None
    status = HERE / f"{job_id}.status"
    state = {"state": "PENDING" if job["pid"] is None else "RUNNING", "reason": "None", "code": "0:0", **job}
    if status.exists() and status.read_text().strip():
        code = int(status.read_text())
        state |= {"state": "COMPLETED" if code == 0 else "FAILED", "code": f"{code}:0"}
    return {**state, **said}


def _squeue(arguments: list[str]) -> int:
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    asked = options["jobs"].split(",") if "jobs" in options else [p.stem for p in HERE.glob("[0-9]*.json")]
    found = [_state(job_id) for job_id in asked]
    for state in found:
        if state is not None and ("jobs" in options or state["state"] in ("PENDING", "RUNNING")):
            line = options["format"]
            for mark, key in (("%i", "id"), ("%T", "state"), ("%r", "reason"), ("%o", "script")):
                line = line.replace(mark, str(state[key]))
            sys.stdout.write(f"{line}\n")
    if not any(found) and "jobs" in options:
        sys.stderr.write("slurm_load_jobs error: Invalid job id specified\n")
        return 1
    return 0


def _scontrol(arguments: list[str]) -> int:
    state = _state(arguments[-1])
    if state is None:
        sys.stderr.write("slurm_load_jobs error: Invalid job id specified\n")
        return 1
    if arguments[0] == "requeue":
        (HERE / f"{state['id']}.requeued").touch()
        return 0
    sys.stdout.write(
        f"JobId={state['id']} JobName=x JobState={state['state']} Reason={state['reason']} ExitCode={state['code']}\n"
    )
    return 0


def _sacct(arguments: list[str]) -> int:
    sys.stderr.write("Slurm accounting storage is disabled\n")
    return 1


def _scancel(arguments: list[str]) -> int:
    job = _read(HERE / f"{arguments[-1]}.json")
    if job.get("pid"):
        os.killpg(job["pid"], signal.SIGKILL)
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))

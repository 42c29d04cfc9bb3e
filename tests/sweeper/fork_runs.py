"""Runs the test app again and again in forks of a process that has imported Ax, which takes seconds each time.

A line on stdin is a JSON list: the working directory, then the arguments. The answers are the fork's pid, at once, and
its wait status, when it has ended.
"""

import json
import os
import runpy
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from hydra_plugins.mlrc_ax_sweeper import _ax  # noqa: E402

APP = Path(__file__).parent / "app" / "task.py"


def main() -> None:
    _ax.torch.set_num_threads(1)  # a pool of threads does not survive a fork
    for line in sys.stdin:
        directory, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.chdir(directory)
            output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = [str(APP), "-m", *arguments]
            try:
                runpy.run_path(str(APP), run_name="__main__")
            except BaseException:
                os._exit(1)
            os._exit(0)
        for answer in (lambda pid=pid: pid, lambda pid=pid: os.waitpid(pid, 0)[1]):
            sys.stdout.write(f"{answer()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

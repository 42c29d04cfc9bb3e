"""One Hydra job as a value that travels: packed by the launcher, run in a process of its own."""

import contextlib
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ._errors import JobFailedError

log = logging.getLogger(__name__)

STDOUT_FILE = "stdout.txt"
STDERR_FILE = "stderr.txt"


@dataclass(frozen=True)
class HydraJob:
    """A job, packed so that a process that knows nothing of the app can run it."""

    number: int
    overrides: tuple[str, ...]
    # of the app: where its modules are, and its command line, which Lightning's DDP starts again
    path: tuple[str, ...]
    arguments: tuple[str, ...]
    # config, context, task function, and Hydra's singletons with OmegaConf's resolvers. Pickled twice: the path must
    # be there before the app's modules are imported
    payload: bytes

    @classmethod
    def pack(
        cls,
        number: int,
        overrides: Sequence[str],
        config: DictConfig,
        hydra_context: HydraContext,
        task_function: TaskFunction,
    ) -> "HydraJob":
        """Packs one job of a sweep."""
        here = os.getcwd()
        arguments = (str(Path(sys.argv[0]).absolute()), *sys.argv[1:]) if sys.argv and sys.argv[0] else tuple(sys.argv)
        return cls(
            number,
            tuple(overrides),
            tuple(entry or here for entry in sys.path),
            arguments,
            cloudpickle.dumps((config, hydra_context, task_function, Singleton.get_state())),
        )

    def run(
        self,
        job_id: str,
        inside: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext(),
    ) -> JobReturn:
        """Runs the job in this process.

        Args:
            job_id: What becomes `hydra.job.id`.
            inside: Entered with the job's folder for the time that the job runs.

        Returns:
            What came of it, in a form that can be pickled. Whatever the task or the composition of its config raises
            is in it; SystemExit and KeyboardInterrupt pass.
        """
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        sys.argv[:] = self.arguments
        try:
            config, hydra_context, task_function, singletons = pickle.loads(self.payload)  # noqa: S301 - our own
            Singleton.set_state(singletons)
            setup_globals()
            job_config = hydra_context.config_loader.load_sweep_config(config, list(self.overrides))
            with open_dict(job_config):
                job_config.hydra.job.id = job_id
                job_config.hydra.job.num = self.number
            with inside(_job_folder(job_config)):
                returned = run_job(
                    hydra_context=hydra_context,
                    task_function=task_function,
                    config=job_config,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
        except Exception as error:
            returned = failed(self.overrides, error)
        return portable(returned)


def failed(overrides: Sequence[str], error: BaseException) -> JobReturn:
    """The return of a job that never came to its task, or not to its end."""
    return JobReturn(overrides=list(overrides), status=JobStatus.FAILED, _return_value=error)


def portable(returned: JobReturn) -> JobReturn:
    """The same return, fit to be pickled. An exception keeps its traceback as its cause's text."""
    value = returned._return_value
    if returned.status == JobStatus.FAILED and isinstance(value, BaseException):
        text = "".join(traceback.format_exception(value))
        if not _survives_pickling(value):
            replaced = JobFailedError(f"{type(value).__name__}: {value}")
            replaced.is_usage_error = bool(getattr(value, "is_usage_error", False))  # type: ignore[attr-defined]
            replaced.is_final = getattr(value, "is_final", False) is True  # type: ignore[attr-defined]
            value = replaced
        returned._return_value = _WithTraceback(value, text)
    elif not _survives_pickling(value):
        error = JobFailedError(f"the task returned a {type(value).__name__}, which cannot be sent between processes")
        returned.status = JobStatus.FAILED
        returned._return_value = error
    return returned


def _survives_pickling(value: Any) -> bool:
    try:
        pickle.loads(cloudpickle.dumps(value))  # noqa: S301 - our own
    except Exception:
        return False
    return True


class _RemoteTraceback(Exception):  # noqa: N818 - it is the text of one
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class _WithTraceback:
    """Unpickles as the exception, with the traceback of the other process as its cause."""

    def __init__(self, exception: BaseException, text: str) -> None:
        self.exception = exception
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.exception, self.text)


def _rebuild(exception: BaseException, text: str) -> BaseException:
    exception.__cause__ = _RemoteTraceback(text)
    return exception


def _job_folder(job_config: DictConfig) -> Path:
    """Where `run_job` will put the job's output. `${hydra:...}` must refer to the job for it."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(job_config)
    try:
        root = str(OmegaConf.select(job_config, "hydra.sweep.dir"))
        return Path(root, str(OmegaConf.select(job_config, "hydra.sweep.subdir"))).absolute()
    finally:
        instance.cfg = before


@contextlib.contextmanager
def streams_to(folder: Path) -> Iterator[None]:
    """Sends what this process, its libraries and its children write to `stdout.txt` and `stderr.txt` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    try:
        for descriptor, name in ((1, STDOUT_FILE), (2, STDERR_FILE)):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, descriptor)
            os.close(file)
        yield
    finally:
        for stream, descriptor, old in ((sys.stdout, 1, kept[0]), (sys.stderr, 2, kept[1])):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
            os.dup2(old, descriptor)
            os.close(old)

"""The settings under `hydra.launcher` for `hydra/launcher=mlrc_slurm`."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class MLRCSlurmLauncherConf:
    """One SLURM job for each Hydra job, submitted through submitit."""

    _target_: str = "hydra_plugins.mlrc_slurm_launcher.mlrc_slurm_launcher.MLRCSlurmLauncher"
    # job files, logs and results; on a disk that the nodes share
    folder: str = "${hydra.sweep.dir}/.slurm"

    # what sbatch is asked for; null: the cluster's default
    name: str = "${hydra.job.name}"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    # time limit of a job
    timeout_min: int = 60
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    # any other options of sbatch, by their long names, e.g. {mail-type: FAIL, exclusive: true}; true: one without a
    # value (typed as Any, so that the command line can set it as a whole)
    additional_parameters: Any = None
    # shell lines before python starts, e.g. ["module load cuda", "source venv/bin/activate"]
    setup: list[str] = field(default_factory=list)
    # command that starts python on the node, e.g. with a container; null: the interpreter of this process
    python: str | None = None
    srun_args: list[str] = field(default_factory=list)

    # times that a job which reaches its time limit is requeued, to go on in its folder; the app must be able to
    max_num_timeout: int = 0
    # seconds before the time limit at which the job is told (SIGUSR2)
    signal_delay_s: int = 120

    # seconds between two questions to the controller, for all jobs together
    poll_seconds: float = 10.0
    # seconds that an ended job's result may take to appear on a shared disk, and a preempted job to be requeued
    settle_seconds: float = 30.0
    # a controller that does not answer for so long ends the wait; the job may still run
    give_up_after_min: float = 1440.0


ConfigStore.instance().store(
    group="hydra/launcher", name="mlrc_slurm", node=MLRCSlurmLauncherConf, provider="mlrc_slurm_launcher"
)

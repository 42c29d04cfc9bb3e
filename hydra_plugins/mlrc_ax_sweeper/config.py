"""The sweeper's settings: upstream's keys, with upstream's defaults, and the additions."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class EarlyStopConfig:
    """Ends a search that no longer improves. `early_stop: null` switches that off."""

    # null: the direction of the experiment
    minimize: bool | None = None
    # null: never stop early. Trials of the start-up phase count as one epoch together, later trials one each.
    max_epochs_without_improvement: int | None = 10
    # an improvement of at most epsilon does not count
    epsilon: float = 0.00001


@dataclass
class ExperimentConfig:
    """What is optimised."""

    name: str | None = None
    # key of the objective in the dict that the task returns; of no effect where it returns a bare value
    objective_name: str = "objective"
    minimize: bool = True
    # several objectives, e.g. {accuracy: maximize, latency: minimize}; replaces the two keys above
    objectives: dict[str, str] | None = None
    # e.g. ["x1 + x2 <= 2.0"], on range parameters
    parameter_constraints: list[str] | None = None
    # e.g. ["latency <= 5.0"], or relative to status_quo ["accuracy >= 0.95 * baseline"]
    outcome_constraints: list[str] | None = None
    # parameters of the point that relative constraints refer to; it runs as the first trial
    status_quo: dict[str, Any] | None = None


@dataclass
class ClientConfig:
    """How Ax is run."""

    verbose_logging: bool = False
    # null: drawn at random once, and kept in the ledger
    random_seed: int | None = None


@dataclass
class AxConfig:
    """Upstream's `ax_config`."""

    # completed trials; failed ones do not count
    max_trials: int = 10
    early_stop: EarlyStopConfig | None = field(default_factory=EarlyStopConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    # {override path: {type: range|choice|fixed, ...}}; may interpolate into the app's config
    params: dict[str, Any] = field(default_factory=dict)
    # how a value without standard error is read: true, of unknown noise; false, exact
    is_noisy: bool = True


@dataclass
class GenerationConfig:
    """How trials are proposed."""

    # fast (centre, Sobol, then Bayesian optimisation) | sobol | random | grid (every point of a discrete space)
    method: str = "fast"
    # start-up trials before the first model; null: Ax's own number, 5
    initialization_budget: int | None = None
    # begin with the centre of the space, as Ax does by itself; false: the start-up points are all of the Sobol sequence
    initialize_with_center: bool = True
    # method grid: in an order that the seed shuffles; false: the last parameter varies fastest
    shuffle_grid: bool = True
    # points to try first, e.g. [{lr: 0.1}, {lr: 0.01}]; each names every tuned parameter
    initialization: list[Any] = field(default_factory=list)


@dataclass
class RacingConfig:
    """Stops a trial whose first replicates show that it cannot reach the best one. Needs `replicates`."""

    enabled: bool = False
    # standard errors of its forecast that the trial must lie behind; in replays of the original benchmark's
    # searches 2.5 saved 44 % of the replicates and kept the winner in 99.7 % (benchmarks/search_quality.py race)
    z: float = 2.5
    # replicates before the first decision
    min_replicates: int = 1
    # completed trials before the first decision
    min_trials: int = 5


@dataclass
class MLRCAxSweeperConf:
    """Settings under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.mlrc_ax_sweeper.mlrc_ax_sweeper.MLRCAxSweeper"
    # upper bound of trials in parallel; null: none
    max_batch_size: int | None = None
    ax_config: AxConfig = field(default_factory=AxConfig)
    # jobs at a time; null: 1 with the basic launcher, otherwise max_batch_size, or 5 as upstream
    n_parallel: int | None = None
    # further attempts of a job that failed
    retries: int = 1
    # failed trials that a search survives: below 1 a fraction of max_trials, rounded up; otherwise a number
    max_failures: float = 0.1
    # a repeated command tries trials that had failed again, and a search that ends with some is an error: for lists of
    # jobs that are all to be done, rather than searches
    retry_failed: bool = False
    # a trial runs once per combination, e.g. {seed: [0, 1, 2]}
    # (typed as Any, so that the command line can set it as a whole)
    replicates: Any = None
    # what Ax is told about noise: inferred | sem | paired | none; null: the task's own standard errors
    # where it returns (mean, sem), otherwise by is_noisy
    noise: str | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    racing: RacingConfig = field(default_factory=RacingConfig)
    # a choice sweep over these overrides starts one search per combination
    search_per: list[str] = field(default_factory=list)
    # {override: message}: may not be searched over
    refused_dimensions: dict[str, str] = field(default_factory=dict)
    # fixed overrides that may differ when a search is resumed, e.g. [trainer.num_workers]
    free_on_resume: list[str] = field(default_factory=list)
    # plots of the finished search, as HTML and PNG in the sweep directory
    report: bool = True


ConfigStore.instance().store(group="hydra/sweeper", name="mlrc_ax", node=MLRCAxSweeperConf, provider="mlrc_ax_sweeper")

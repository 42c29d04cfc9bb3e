"""Schedulers, clipping, the evaluation before training, NMI and AMI, loggers: off in the protocol, exact when on."""

import csv
from functools import partial

import pytest
import torch
from pytorch_lightning.loggers import Logger
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.metrics import METRICS
from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_module, build_trainer
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.training import module
from mlrc_lightning.training.checkpoint import FoldCheckpoint
from mlrc_lightning.training.module import LOSS, MODEL, EmbeddingModule, GroupOfOptimizer, Schedule
from tests.protocol.test_trial import QUICK, without_times
from tests.training.test_module import module_with_batchnorm

MAPR = "mean_average_precision_at_r"


def log_of(folder, fold=0):
    with (folder / f"fold_{fold}" / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


# schedulers


def test_a_scheduler_sets_the_rate_of_its_own_group_also_after_another_state_was_loaded():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 3.0}])
    scheduler = StepLR(GroupOfOptimizer(optimizer, 1), step_size=2, gamma=0.1)
    rates = []
    for _ in range(4):
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [[1.0, 3.0], [1.0, pytest.approx(0.3)], [1.0, pytest.approx(0.3)], [1.0, pytest.approx(0.03)]]
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, pytest.approx(0.003)]


def test_one_optimizer_with_a_scheduler_and_a_limit_per_group_trains_as_two_optimizers():
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(9)
    rmsprop = partial(torch.optim.RMSprop, momentum=0.9, weight_decay=1e-4)
    theirs = module_with_batchnorm().train()
    ours = EmbeddingModule(
        **{name: getattr(module_with_batchnorm(), name) for name in ("trunk", "embedder", "objective")},
        optimizer=partial(rmsprop, lr=1e-3),
        loss_optimizer={"lr": 0.01},
        schedules={
            MODEL: Schedule("iteration", partial(ExponentialLR, gamma=0.5)),
            LOSS: Schedule("iteration", partial(StepLR, step_size=3)),
        },
        clip_norms={MODEL: 0.01, LOSS: 0.5},
    ).train()
    optimizer = ours.configure_optimizers()
    model = [*theirs.trunk.parameters(), *theirs.embedder.parameters()]
    two = [rmsprop(model, lr=1e-3), rmsprop(theirs.objective.parameters(), lr=0.01)]
    schedulers = [ExponentialLR(two[0], gamma=0.5), StepLR(two[1], step_size=3)]
    for _ in range(5):
        optimizer.zero_grad()
        ours.batch_loss((images, labels)).backward()
        ours.update(optimizer)
        theirs.batch_loss((images, labels)).backward()
        norms = (
            torch.nn.utils.clip_grad_norm_(model, 0.01),
            torch.nn.utils.clip_grad_norm_(theirs.objective.parameters(), 0.5),
        )
        assert norms[0] > 0.01, "the limit must matter"
        assert norms[1] > 0.5
        for one, scheduler in zip(two, schedulers, strict=True):
            one.step()
            one.zero_grad()
            scheduler.step()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.slow
def test_schedulers_by_iteration_and_epoch_set_the_rates_worked_by_hand(settings, tmp_path):
    run_trial(
        settings(
            *QUICK, "logger=csv", "fold=0", "schedule.max_epochs=4", "schedule.iterations_per_epoch=3",
            "scheduler.model={_target_: torch.optim.lr_scheduler.StepLR, interval: epoch, step_size: 2, gamma: 0.5}",
            "optimizer.lr=0.001",
            "scheduler.loss={_target_: torch.optim.lr_scheduler.ExponentialLR, interval: iteration, gamma: 0.9}",
            "loss.optimizer.lr=0.01",
        ),
        tmp_path,
    )  # fmt: skip
    rows = log_of(tmp_path)[1:]  # the first is of the untrained model
    assert [row["learning_rate/model"] for row in rows] == [0.001, 0.001, 0.0005, 0.0005]
    expected = [0.01 * 0.9 ** (3 * epoch) for epoch in range(4)]
    assert [row["learning_rate/loss"] for row in rows] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_plateau_counts_validations_after_training_began_and_no_other_epoch(settings, tmp_path, monkeypatch):
    scores = iter([0.9, 0.3, 0.4, 0.4, 0.2, 0.1])  # the first is the untrained model's
    real = module.retrieval_metrics

    def scripted(embeddings, labels):
        metrics = real(embeddings, labels)
        object.__setattr__(metrics, MAPR, next(scores))
        return metrics

    monkeypatch.setattr(module, "retrieval_metrics", scripted)
    run_trial(
        settings(
            *QUICK, "logger=csv", "fold=0", "loss=triplet", "schedule.max_epochs=10", "schedule.save_interval=2",
            "schedule.patience=null", "scheduler=plateau", "scheduler.model.patience=0", "scheduler.model.factor=0.5",
            "optimizer.lr=0.001", is_sweep_job=True,
        ),
        tmp_path,
    )  # fmt: skip
    rates = [row["learning_rate/model"] for row in log_of(tmp_path)[1:]]
    # validated after epochs 2, 4, 6, 8 and 10; no better after 6 and 8
    assert rates == [0.001] * 6 + [0.0005] * 2 + [0.00025] * 2


SCHEDULERS = {
    "step": ["scheduler=step", "scheduler.model.step_size=1"],
    "cosine": ["scheduler=cosine"],
    "warmup": ["scheduler=warmup", "scheduler.model.total_iters=5"],
    "plateau": ["scheduler=plateau", "scheduler.model.patience=0", "+scheduler.model.threshold=10"],
    "milestones": [
        "scheduler.model={_target_: torch.optim.lr_scheduler.MultiStepLR, interval: iteration, milestones: [1, 3, 5]}"
    ],
    "one cycle": [
        "scheduler.loss={_target_: torch.optim.lr_scheduler.OneCycleLR, interval: iteration, max_lr: 0.1,"
        " total_steps: 20}"
    ],
}


EVERY_TIME = ("step", "plateau", "one cycle")  # by epoch, by validation, by iteration and of the loss's own parameters


@pytest.mark.parametrize(
    "scheduler", [pytest.param(s, marks=() if s in EVERY_TIME else pytest.mark.nightly) for s in SCHEDULERS]
)
@pytest.mark.slow
def test_a_fold_killed_after_a_validation_ends_as_the_whole_one_with_its_scheduler_and_its_log(
    settings, tmp_path, monkeypatch, scheduler
):
    s = settings(
        *QUICK, *SCHEDULERS[scheduler], "logger=csv", "fold=0", "schedule.max_epochs=6", "schedule.save_interval=2",
        "schedule.patience=null", "gradient_clip.model=0.01", "optimizer.lr=0.001",
    )  # fmt: skip
    whole = run_trial(s, tmp_path / "whole")
    rates = [(row["learning_rate/model"], row["learning_rate/loss"]) for row in log_of(tmp_path / "whole")[1:]]
    assert len(set(rates)) > 1, "the scheduler must matter"
    end = FoldCheckpoint.on_train_epoch_end

    def die_in_the_fifth_epoch(self, trainer, pl_module):
        end(self, trainer, pl_module)
        if self.history[-1].epoch == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(FoldCheckpoint, "on_train_epoch_end", die_in_the_fifth_epoch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_trial(s, tmp_path / "killed")
    assert [row["step"] for row in log_of(tmp_path / "killed")] == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(FoldCheckpoint, "on_train_epoch_end", end)
    torch.manual_seed(1234)
    resumed = run_trial(s, tmp_path / "killed")
    assert without_times(resumed) == without_times(whole)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    for file in resumed.folds[0].weights.values():
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler=step", "scheduler.model.interval=batch"], "scheduler.model.interval=batch: unknown.*iteration"),
        (["scheduler.loss={interval: epoch}"], "scheduler.loss: expected a _target_"),
        (["gradient_clip.model=0"], "gradient_clip.model=0.0: expected a number > 0, or null"),
        (["gradient_clip.loss=much"], "gradient_clip.loss='much': expected float | None"),
        (["evaluation.check_untrained_accuracy=maybe"], "check_untrained_accuracy='maybe': expected bool | None"),
        (["logger={save_dir: x}"], "logger: expected a _target_"),
        (["sampler={length_before_new_list: 3}", "~sampler._target_"], "sampler: expected a _target_"),
    ],
)
def test_a_bad_option_is_named_with_what_was_expected(settings, overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


@pytest.mark.parametrize(("name", "argument"), [
    ("step", "step_size"), ("cosine", "T_max"), ("warmup", "total_iters"), ("plateau", "patience"),
])  # fmt: skip
@pytest.mark.slow
def test_every_scheduler_of_the_group_builds_and_takes_another_value_for_one_optimizer(settings, name, argument):
    s = settings(f"scheduler={name}", f"scheduler.loss.{argument}=7")
    assert s.scheduler.loss[argument] == 7
    assert s.scheduler.model == settings(f"scheduler={name}").scheduler.loss != s.scheduler.loss
    built = build_module(s, 0, 8)
    built.configure_optimizers()
    assert [getattr(built.schedulers[group], argument) for group in (MODEL, LOSS)] == [s.scheduler.model[argument], 7]


@pytest.mark.slow
def test_a_misspelt_argument_of_a_scheduler_is_refused(settings):
    with pytest.raises(ConfigError, match="scheduler.model: cannot build torch.optim.lr_scheduler.StepLR.*gama"):
        build_module(settings("scheduler=step", "+scheduler.model.gama=1"), 0, 8).configure_optimizers()


# clipping


def displacement(settings, tmp_path, *overrides):
    """How far one step of plain gradient descent at rate 1 moves the model, and the loss's own parameters."""
    s = settings(
        "fold=0", "schedule.iterations_per_epoch=1", "loss.optimizer.lr=1.0", "optimizer._target_=torch.optim.SGD",
        "optimizer.lr=1.0", "optimizer.momentum=0", "optimizer.weight_decay=0", *overrides,
    )  # fmt: skip
    data = TrialData(s)
    trained = build_module(s, 0, len(data.splits[0].train))
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    trainer = build_trainer(s, tmp_path, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(trained, build_datamodule(s, data, data.splits[0]))
    moved = {name: (parameter.detach() - before[name]).square().sum() for name, parameter in trained.named_parameters()}
    of_loss = sum(square for name, square in moved.items() if name.startswith("objective."))
    return (sum(moved.values()) - of_loss).sqrt().item(), of_loss.sqrt().item()


@pytest.mark.slow
def test_each_groups_gradient_is_clipped_to_its_own_norm(settings, tmp_path):
    model, loss = displacement(settings, tmp_path)
    assert model > 0.1
    assert loss > 0.1
    one = displacement(settings, tmp_path, "gradient_clip.model=0.01")
    assert one == (pytest.approx(0.01, rel=1e-3), pytest.approx(loss, rel=1e-5))
    other = displacement(settings, tmp_path, "gradient_clip.loss=0.02")
    assert other == (pytest.approx(model, rel=1e-5), pytest.approx(0.02, rel=1e-3))
    neither = displacement(settings, tmp_path, "gradient_clip.model=1000", "gradient_clip.loss=1000")
    assert neither == (pytest.approx(model, rel=1e-5), pytest.approx(loss, rel=1e-5))


# what is evaluated before training


def constant(monkeypatch):
    real = module.retrieval_metrics

    def scripted(embeddings, labels):
        metrics = real(embeddings, labels)
        object.__setattr__(metrics, MAPR, 0.5)
        return metrics

    monkeypatch.setattr(module, "retrieval_metrics", scripted)


@pytest.mark.parametrize(("check", "epochs"), [("null", [0, 1, 2]), ("true", [0, 1, 2]), ("false", [1, 2, 3])])
@pytest.mark.slow
def test_patience_begins_with_the_first_evaluation(settings, tmp_path, monkeypatch, check, epochs):
    constant(monkeypatch)
    record = run_trial(
        settings(
            *QUICK, "fold=0", "schedule.max_epochs=6", "schedule.patience=1",
            f"evaluation.check_untrained_accuracy={check}", is_sweep_job=True,
        ),
        tmp_path,
    )  # fmt: skip
    fold = record.folds[0]
    assert [epoch.epoch for epoch in fold.epochs] == epochs
    assert fold.stopped_because == "patience"
    assert fold.selected_epoch == 1
    assert fold.beats_untrained is (None if check == "false" else False)
    assert (fold.untrained_trunk_val is not None) == (check == "true"), "in a search only where asked for"


@pytest.mark.slow
def test_the_trunk_alone_is_evaluated_with_a_test_and_not_where_refused(settings, tmp_path):
    quick = ["fold=0", "schedule.iterations_per_epoch=1"]
    default = run_trial(settings(*quick), tmp_path / "a").folds[0]
    refused = run_trial(settings(*quick, "evaluation.check_untrained_accuracy=false"), tmp_path / "b").folds[0]
    assert set(default.untrained_trunk_val) == set(METRICS)
    assert refused.untrained_trunk_val is None
    assert refused.epochs[0].epoch == 1
    assert refused.val[MAPR] == default.val[MAPR], "what is evaluated before changes no weight"


# NMI and AMI


@pytest.mark.slow
def test_clusters_are_scored_beside_the_accuracies_which_stay_as_they_are(settings, tmp_path):
    quick = ["schedule.iterations_per_epoch=2", "embedder.embedding_size=16"]
    plain = run_trial(settings(*quick), tmp_path / "plain")
    record = run_trial(settings(*quick, "evaluation.clustering=true"), tmp_path / "clustered")

    def both(with_clusters, without):
        assert set(with_clusters) == {*METRICS, "NMI", "AMI"}
        assert {name: with_clusters[name] for name in METRICS} == without
        assert -1 <= with_clusters["AMI"] <= with_clusters["NMI"] <= 1

    both(record.val, plain.val)
    for fold, other in zip(record.folds, plain.folds, strict=True):
        both(fold.val, other.val)
        both(fold.untrained_trunk_val, other.untrained_trunk_val)
        for epoch, same in zip(fold.epochs, other.epochs, strict=True):
            both(epoch.val, same.val)
    both(record.test.separated, plain.test.separated)
    both(record.test.concatenated, plain.test.concatenated)
    for name, values in record.test.separated_folds.items():
        both(values, plain.test.separated_folds[name])
    for name, values in record.test.baselines.items():
        both(values, plain.test.baselines[name])


# loggers


@pytest.mark.slow
def test_the_csv_has_what_the_record_has_an_epoch_a_row(settings, tmp_path):
    record = run_trial(settings(*QUICK, "logger=csv", "schedule.max_epochs=3", "schedule.save_interval=2"), tmp_path)
    for fold in record.folds:
        rows = log_of(tmp_path, fold.fold)
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        for row, epoch in zip(rows, fold.epochs, strict=True):
            assert row.get("train/loss") == epoch.train_loss
            assert {name: row.get(f"val/{name}") for name in METRICS} == (epoch.val or dict.fromkeys(METRICS))
        assert [row.get("learning_rate/model") for row in rows] == [None, 3e-5, 3e-5, 3e-5]
        assert [row.get("learning_rate/loss") for row in rows] == [None, 1e-3, 1e-3, 1e-3]


@pytest.mark.slow
def test_nothing_is_logged_where_no_logger_is_asked_for(settings, tmp_path):
    run_trial(settings(*QUICK, "fold=0"), tmp_path)
    assert not list(tmp_path.rglob("logs"))


@pytest.mark.slow
def test_a_logger_hears_of_an_epoch_once_and_of_no_step(settings, tmp_path, monkeypatch):
    told = []

    class Recording(Logger):
        name = version = None

        def log_metrics(self, metrics, step=None):
            told.append((step, sorted(metrics)))

        def log_hyperparams(self, params):
            pytest.fail("not asked for")

    monkeypatch.setattr("mlrc_lightning.protocol.fold.build_logger", lambda *_: Recording())
    run_trial(settings(*QUICK, "fold=0", "loss=triplet", "schedule.iterations_per_epoch=5"), tmp_path)
    val = [f"val/{name}" for name in sorted(METRICS)]
    assert told == [(0, val), *((step, ["learning_rate/model", "train/loss", *val]) for step in (1, 2))]


@pytest.mark.slow
def test_tensorboard_has_every_epoch_once_also_after_a_resume(settings, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    s = settings(*QUICK, "logger=tensorboard", "fold=0", "schedule.max_epochs=4", "schedule.save_interval=2")
    end = FoldCheckpoint.on_train_epoch_end

    def die_in_the_third_epoch(self, trainer, pl_module):
        end(self, trainer, pl_module)
        if self.history[-1].epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(FoldCheckpoint, "on_train_epoch_end", die_in_the_third_epoch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_trial(s, tmp_path)
    monkeypatch.setattr(FoldCheckpoint, "on_train_epoch_end", end)
    record = run_trial(s, tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / "fold_0" / "logs"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(e.epoch, pytest.approx(e.train_loss)) for e in record.folds[0].epochs if e.epoch]
    scores = [(event.step, event.value) for event in events.Scalars(f"val/{MAPR}")]
    assert scores == [(e.epoch, pytest.approx(e.val[MAPR])) for e in record.folds[0].epochs if e.val]


def test_tensorboard_that_is_not_installed_is_one_message(settings, tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(ConfigError, match=r"TensorBoardLogger needs a package .*mlrc-lightning\[tensorboard\]"):
        run_trial(settings(*QUICK, "logger=tensorboard", "fold=0"), tmp_path)


# the names of protocols and runs


def test_the_defaults_are_the_protocol_under_its_name(compose_config):
    # a change of these two moves every result to another folder
    assert compose_config().protocol == "mlrc-small_cnn-dfcb5e35"
    assert compose_config("dataset=cub200").protocol == "mlrc-bn_inception-85650e67"


def run_folder(compose_config, *overrides):
    return compose_config(*overrides, return_hydra_config=True).hydra.run.dir


@pytest.mark.slow
def test_an_option_that_changes_the_training_changes_the_protocol(compose_config):
    names = {compose_config().protocol}
    for option in (
        "scheduler=step", "scheduler=plateau", "gradient_clip.model=1", "gradient_clip.loss=1",
        "sampler.length_before_new_list=64", "evaluation.check_untrained_accuracy=false",
    ):  # fmt: skip
        protocol = compose_config(option).protocol
        assert protocol not in names, option
        names.add(protocol)


@pytest.mark.slow
def test_an_option_that_only_tells_more_is_another_run_of_the_same_protocol(compose_config):
    base, protocol = run_folder(compose_config), compose_config().protocol
    for option in ("evaluation.clustering=true", "evaluation.check_untrained_accuracy=true"):
        assert compose_config(option).protocol == protocol, option
        assert run_folder(compose_config, option) != base, option


@pytest.mark.parametrize(
    "option",
    ["scheduler=none", "sampler=m_per_class", "gradient_clip.model=null", "logger=csv", "evaluation.batch_size=7"],
)
def test_an_option_as_the_protocol_has_it_is_the_same_run(compose_config, option):
    assert run_folder(compose_config, option) == run_folder(compose_config)


@pytest.mark.slow
def test_download_is_one_switch_that_decides_no_figure(compose_config):
    base = run_folder(compose_config, "dataset=cub200")
    for switch in ("dataset.download=true", "dataset.images.download=true"):
        assert compose_config("dataset=cub200", switch).dataset.images.download is True
        assert run_folder(compose_config, "dataset=cub200", switch) == base
    assert compose_config("dataset=cub200").dataset.images.download is False


def test_a_plateau_scheduler_is_torchs(settings):
    built = build_module(settings("scheduler=plateau", "loss=triplet"), 0, 8)
    built.configure_optimizers()
    assert set(built.schedulers) == {MODEL}, "triplet has no parameters of its own"
    assert isinstance(built.schedulers[MODEL], ReduceLROnPlateau)

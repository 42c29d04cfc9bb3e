"""Sixteen bits around a loss in float32: the paper's optima, the gradients' scaler, and the trainer's options."""

import math
import shutil

import mlrc_lightning._torchvision  # noqa: F401

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import as_json
from mlrc_lightning.models.trunk import Trunk
from mlrc_lightning.parallel.signals import TrialStopped
from mlrc_lightning.protocol import fold as fold_module
from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_module, build_trainer
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.settings.identity import identity
from mlrc_lightning.training.checkpoint import FoldCheckpoint
from mlrc_lightning.training.module import EmbeddingModule
from tests.parallel.test_collectives import EMBEDDING_SIZE, TinyTrunk, batch
from tests.training.losses.cases import LOSSES, NUM_CLASSES, SETTINGS, case
from tests.training.test_module import module_with_batchnorm

QUICK = ["fold=0", "evaluation.baselines=false", "schedule.iterations_per_epoch=3", "trunk.model.width=8"]
FLOATS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def batches(dtype):
    """Embeddings as 16 bits leave them, then normalised as the module does: spread, in tight clusters, in one point."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(NUM_CLASSES, generator=generator)[:8].repeat_interleave(4)
    spread = torch.randn(32, 128, generator=generator)
    centers = torch.randn(NUM_CLASSES, 128, generator=generator)
    for raw in (spread, centers[labels] + 1e-3 * spread, torch.ones(32, 128)):
        yield raw.to(dtype), labels


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_papers_optimum_is_finite_on_embeddings_of_16_bits(loss, setting):
    for precision, dtype in FLOATS.items():
        objective = case(loss, setting).objective(128, torch.float32)
        for raw, labels in batches(dtype):
            raw.requires_grad_()
            objective.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                with torch.autocast("cpu", enabled=False):  # as EmbeddingModule.forward ends
                    embeddings = nn.functional.normalize(raw.float(), dim=1)
                value = objective(embeddings, labels)
            value.backward()
            assert value.dtype == torch.float32
            assert math.isfinite(value.item()), (precision, value)
            found = [raw.grad, *(p.grad for p in objective.parameters())]
            assert all(gradient.isfinite().all() for gradient in found if gradient is not None), precision
            assert all(p.dtype == torch.float32 for p in objective.parameters())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_training_in_16_bits_goes_on_at_the_papers_optimum(loss, setting):
    for precision, dtype in FLOATS.items():
        objective = case(loss, setting).objective(EMBEDDING_SIZE, torch.float32)
        torch.manual_seed(0)
        module = EmbeddingModule(TinyTrunk(), nn.Linear(16, EMBEDDING_SIZE), objective).train()
        parameters = list(module.parameters())
        optimizer = torch.optim.RMSprop(parameters, lr=1e-4)
        # gradients of 16 bits are scaled as Lightning scales them; a step whose gradients overflow halves the scale
        scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
        context = MixedPrecision(precision, "cpu", scaler=scaler if scaler.is_enabled() else None)
        taken = 0
        for number in range(20):
            inputs, labels = batch(loss, number, torch.float32)
            images = (128 + 40 * inputs).clamp(0, 255).byte().reshape(-1, 3, 2, 2)
            optimizer.zero_grad()
            with context.forward_context():
                value = module.batch_loss((images, labels))
            assert value.dtype == torch.float32
            assert math.isfinite(value.item()), precision
            before = [p.detach().clone() for p in parameters]
            scale = scaler.get_scale()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            changed = not all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
            assert not (changed and scaler.get_scale() < scale), "a step that overflowed was taken"
            taken += scaler.get_scale() >= scale
            assert all(p.isfinite().all() for p in parameters), precision
        assert taken >= (20 if dtype == torch.bfloat16 else 10), (precision, taken, scaler.get_scale())


@pytest.mark.parametrize(("precision", "dtype"), FLOATS.items())
def test_the_trunk_computes_in_16_bits_and_the_loss_in_32(precision, dtype):
    module, seen = module_with_batchnorm().train(), {}
    module.embedder.register_forward_hook(lambda layer, inputs, output: seen.update(embedder=output.dtype))
    module.objective.loss.register_forward_hook(lambda layer, inputs, output: seen.update(loss=inputs[0].dtype))
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with MixedPrecision(precision, "cpu", scaler=None if precision[0] == "b" else Scaler()).forward_context():
        module.batch_loss((images, torch.arange(9))).backward()
    assert seen == {"embedder": dtype, "loss": torch.float32}
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.slow
def test_a_trial_in_bf16_trains(settings, tmp_path):
    record = run_trial(settings(*QUICK, "trainer.precision=bf16-mixed"), tmp_path)
    assert record.status == "complete"
    assert all(math.isfinite(epoch.train_loss) for epoch in record.folds[0].epochs[1:])


def test_float16_on_a_cpu_is_refused_and_not_replaced(settings, tmp_path):
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU"), pytest.raises(ConfigError, match="bf16"):
        build_trainer(settings("trainer.precision=16-mixed"), tmp_path)


class Scaler(torch.amp.GradScaler):
    """The scaler of float16 gradients on a CPU; it doubles its scale after three steps."""

    def __init__(self):
        super().__init__("cpu", init_scale=2.0**20, growth_interval=3)


@pytest.fixture
def float16(monkeypatch):
    """Lets trials train with scaled gradients on a CPU; returns the scalers that were used."""
    scalers, build = [], fold_module.build_trainer

    def build_scaled(*arguments, **more):
        trainer = build(*arguments, **more)
        scalers.append(Scaler())
        # Lightning takes bf16 in its place: the arithmetic of float16 is not to be had everywhere, its scaler is
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scalers[-1])
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        trainer.strategy.precision_plugin = plugin
        return trainer

    monkeypatch.setattr(fold_module, "build_trainer", build_scaled)
    return scalers


def weights(folder):
    return {path.name: path.read_bytes() for path in (folder / "fold_0").glob("*.safetensors")}


@pytest.mark.slow
def test_the_scaler_goes_on_where_a_stopped_training_left_it(settings, tmp_path, float16, monkeypatch):
    s = settings(*QUICK, "schedule.max_epochs=3")
    expected = run_trial(s, tmp_path / "whole").folds[0]
    whole = float16[-1].state_dict()
    assert whole["scale"] == 2.0**23, "nine steps, doubled every third"
    start = FoldCheckpoint.before_iteration

    def stop_in_the_second_epoch(self, trainer, module, number):
        if (trainer.current_epoch, number) == (1, 1):
            self._stop.received = 15
        start(self, trainer, module, number)

    monkeypatch.setattr(FoldCheckpoint, "before_iteration", stop_in_the_second_epoch)
    with pytest.raises(TrialStopped):
        run_trial(s, tmp_path / "stopped")
    monkeypatch.setattr(FoldCheckpoint, "before_iteration", start)
    resumed = run_trial(s, tmp_path / "stopped").folds[0]
    assert float16[-1].state_dict() == whole
    assert [epoch.train_loss for epoch in resumed.epochs] == [epoch.train_loss for epoch in expected.epochs]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_step_that_the_scaler_skips_changes_no_weight_and_no_schedule(settings, tmp_path, float16, monkeypatch):
    s = settings(*QUICK, "scheduler=warmup")
    data = TrialData(s)
    module = build_module(s, 0, len(data.splits[0].classes("train")))
    states, rates = [], []
    loss = EmbeddingModule.batch_loss

    def overflowing(self, batch):
        states.append([p.detach().clone() for p in module.parameters()])
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss(self, batch) * (float("inf") if len(states) == 2 else 1.0)

    monkeypatch.setattr(EmbeddingModule, "batch_loss", overflowing)
    monkeypatch.setattr(EmbeddingModule, "on_train_epoch_end", lambda self: None)  # its loss is not finite
    trainer = fold_module.build_trainer(s, tmp_path, max_epochs=1, limit_val_batches=0, enable_checkpointing=False)
    trainer.fit(module, build_datamodule(s, data, data.splits[0]))
    assert all(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True)), "the second step was skipped"
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert rates == sorted(rates)
    assert len(set(rates)) == 3
    assert float16[-1].get_scale() == 2.0**19, "halved once"


@pytest.mark.slow
def test_deterministic_algorithms_are_taken_where_there_are_any(settings, tmp_path):
    for wanted in (True, False):
        build_trainer(settings(f"trainer.deterministic={str(wanted).lower()}"), tmp_path)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert torch.is_deterministic_algorithms_warn_only_enabled() == wanted, "the others warn, and train on"


@pytest.mark.slow
def test_channels_last_is_the_same_network_in_another_layout(settings, tmp_path):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain, last = (build_module(settings(f"trainer.channels_last={on}"), 0, None).eval() for on in (False, True))
    convolution = last.trunk.blocks[1][0].weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.is_contiguous()
    seen = []
    last.trunk.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(last(images), plain(images), rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    record = run_trial(settings(*QUICK, "trainer.channels_last=true", "schedule.max_epochs=1"), tmp_path)
    assert record.status == "complete"


def test_compile_goes_through_torch_and_keeps_the_names_of_weights(settings, monkeypatch):
    compiled = []
    monkeypatch.setattr(Trunk, "compile", lambda self: compiled.append(self))
    module = build_module(settings("trainer.compile=true"), 0, None)
    assert compiled == [module.trunk]
    assert module.state_dict().keys() == build_module(settings(), 0, None).state_dict().keys()
    assert len(compiled) == 1


def test_options_that_change_figures_make_another_trial_and_leave_the_others_what_they_were(settings):
    plain = identity(as_json(settings()))
    for option in ("channels_last", "compile"):
        assert option not in plain
        assert identity(as_json(settings(f"trainer.{option}=true"))) == {**plain, option: True}


@pytest.mark.slow
def test_captured_graphs_are_torchs_own_and_need_a_gpu_and_one_rank(settings, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(Trunk, "compile", lambda self, **how: compiled.append(how))
    chosen = settings("trainer.compile=cudagraphs")
    build_module(chosen, 0, None)
    assert compiled == [{"backend": "cudagraphs", "dynamic": False}]
    with pytest.raises(
        ConfigError, match="this machine cannot run .*compile=cudagraphs captures what a CUDA device does"
    ):
        build_trainer(chosen, tmp_path)
    with pytest.raises(ConfigError, match="trainer.compile='cudagraphs': expected false or true with several ranks"):
        settings("trainer=ddp", "trainer.devices=2", "trainer.compile=cudagraphs")
    with pytest.raises(ConfigError, match="trainer.compile='fast': expected false, true or cudagraphs"):
        settings("trainer.compile=fast")
    assert identity(as_json(chosen)) == {**identity(as_json(settings())), "compile": "cudagraphs"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_the_backend_that_captures_graphs_computes_the_same_where_there_are_none(settings):
    """Everything of it but the capture, which torch leaves out on a CPU."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    options = ["trunk.model.width=8", "embedder.embedding_size=8"]
    plain, captured = (
        build_module(settings(f"trainer.compile={how}", *options), 0, None) for how in ("false", "cudagraphs")
    )
    for module in (plain, captured):
        module(images).square().sum(1).pow(2).add(module(images)[:, 0]).sum().backward()
    for (name, own), other in zip(plain.named_parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(captured(images[:3]), plain(images[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_trunk_computes_the_same(settings):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    options = ["trunk.model.width=8", "embedder.embedding_size=8"]
    plain, compiled = (
        build_module(settings(f"trainer.compile={on}", *options), 0, None).eval() for on in (False, True)
    )
    assert compiled.trunk._compiled_call_impl is not None
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)

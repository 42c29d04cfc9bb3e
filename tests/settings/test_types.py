"""The strict reader, and the checks across fields."""

import dataclasses
from dataclasses import dataclass

import pytest

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.reading import read
from mlrc_lightning.settings.types import TrialSettings


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    pair: tuple[float, float]
    many: tuple[int, ...]
    maybe: int | None
    either: bool | str
    open: dict[str, object]


GOOD = {
    "name": "x",
    "inner": {"size": 3, "rate": 1},
    "pair": [0, 0.5],
    "many": [1, 2, 3],
    "maybe": None,
    "either": "file",
    "open": {"a": [1, {"b": 2}]},
}


def test_reads_nested_values_into_their_types():
    outer = read(Outer, GOOD)
    assert outer.inner == Inner(3, 1.0)
    assert isinstance(outer.inner.rate, float)
    assert outer.pair == (0.0, 0.5)
    assert (outer.many, outer.maybe, outer.either) == ((1, 2, 3), None, "file")


def test_reading_what_was_written_gives_the_same():
    outer = read(Outer, GOOD)
    assert read(Outer, dataclasses.asdict(outer)) == outer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, r"nmae: unknown key. Did you mean name\?"),
        ({"inner": {"size": 3, "rate": 1, "sise": 4}}, r"inner.sise: unknown key. Did you mean size\?"),
        ({"inner": {"size": 3}}, "inner.rate: expected a value, found none"),
        ({"inner": 3}, "inner: expected a mapping, found 3"),
        ({"inner": {"size": 3.5, "rate": 1}}, "inner.size=3.5: expected int"),
        ({"inner": {"size": True, "rate": 1}}, "inner.size=True: expected int"),
        ({"inner": {"size": 3, "rate": "fast"}}, "inner.rate='fast': expected float"),
        ({"pair": [1, 2, 3]}, r"pair=\[1, 2, 3\]: expected tuple"),
        ({"many": [1, "2"]}, r"many\[1\]='2': expected int"),
        ({"maybe": "3"}, "maybe='3': expected int | None"),
        ({"either": 3}, "either=3: expected bool | str"),
        ({"open": [1]}, r"open=\[1\]: expected dict"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(change, message):
    with pytest.raises(ConfigError, match=message):
        read(Outer, GOOD | change)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fold=7"], "fold=7: expected all, one of 0 to 3"),
        (["fold=[0,0]"], r"fold=\(0, 0\): expected"),
        (["fold=every"], "fold='every': expected all"),
        (["optimizer.lr=nan"], "optimizer.lr=nan: expected a finite number"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: expected a number > 0"),
        (["optimizer.lr=fast"], "optimizer.lr='fast': expected a number > 0"),
        (["loss.optimizer.lr=0"], "loss.optimizer.lr=0: expected a number > 0"),
        (["loss.function.margin=inf"], "loss.function.margin=inf: expected a finite number"),
        (["loss=triplet", "batch_size=30"], "batch_size=30: expected a multiple of loss.samples_per_class=4"),
        (["batch_size=big"], "batch_size='big': expected int"),
        (["transform.crop=64"], "transform.crop=64: expected 1 to transform.resize=32"),
        (["transform.scale=[0.5,2]"], "transform.scale=.*expected 0 < low <= high <= 1"),
        (["schedule.save_interval=5"], "schedule.max_epochs=2: expected >= schedule.save_interval=5"),
        (["schedule.patience=-1"], "schedule.patience=-1: expected >= 0, or null"),
        (["trainer.precision=16"], "trainer.precision=16: expected str"),
        (["trainer.precision=bf16"], "trainer.precision=bf16: unknown. Did you mean bf16-mixed"),
        (["seed=-3"], "seed=-3: expected >= 0"),
        (["embedder.embedding_size=1"], "embedder.embedding_size=1: expected >= 2"),
        (["+loss.oops=1"], "loss.oops: unknown key"),
        (["trunk=timm"], "trunk.name: expected a value, found none.*trunk.name="),
        (["dataset.images=null"], "dataset.images=None: expected dict"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(settings, overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


def test_a_record_s_settings_read_back_as_they_were(settings):
    original = settings("loss=multi_similarity_miner", "fold=[1,3]")
    assert read(TrialSettings, dataclasses.asdict(original)) == original
    assert original.folds == (1, 3)


def test_a_sweep_job_cannot_reach_the_test_classes(settings):
    assert settings().opens_test_classes
    assert not settings(is_sweep_job=True).opens_test_classes
    assert settings(is_sweep_job=True).stage == "search"
    assert not settings("stage=search").opens_test_classes


def test_a_search_keeps_models_only_where_asked_to(settings):
    assert settings().keeps_models
    assert not settings(is_sweep_job=True).keeps_models
    assert settings("keep_models=true", is_sweep_job=True).keeps_models

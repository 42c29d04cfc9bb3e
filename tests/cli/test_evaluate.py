"""Finished runs evaluated and trained again from their records, which are data and not trusted."""

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from mlrc_lightning.__main__ import main
from mlrc_lightning.cli.evaluate import evaluate
from mlrc_lightning.cli.reproduce import reproduce
from mlrc_lightning.errors import ConfigError, MlrcError, RecordError, WeightsError
from mlrc_lightning.files import config_folder, only_writer
from mlrc_lightning.original.models import export_original
from mlrc_lightning.protocol import trial
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.reading import read
from mlrc_lightning.results.records import append_evaluation, read_evaluations, read_run
from mlrc_lightning.settings.recorded import recorded_settings, trusted_targets

SETTINGS = ("dataset", "trunk", "split", "optimizer", "sampler", "logger")
QUICK = ["loss=triplet", "schedule.iterations_per_epoch=2", "evaluation.baselines=false"]
RUN = [*QUICK, "stage=reproduce", "hyperparameters=default", "run=2"]


@pytest.fixture(autouse=True)
def _default_data_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set" / "2"


@pytest.fixture
def edit(folder):
    """Changes the record of the run as one may who wants it to do something else."""

    def change(how):
        content = json.loads((folder / "record.json").read_text())
        how(content)
        (folder / "record.json").write_text(json.dumps(content))

    return change


def test_a_run_tested_again_has_the_records_numbers_to_the_last_bit(trained, folder):
    record = trained(folder, *RUN)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shown = evaluate(folder, "test", "both")
    (line,) = read_evaluations(folder)
    assert line["split"] == "test"
    assert line["separated"] == record.test.separated
    assert line["separated_folds"] == record.test.separated_folds
    assert line["concatenated"] == record.test.concatenated
    assert line["num_queries"] == 72
    assert f"{100 * record.test.concatenated['r_precision']:.2f}" in shown
    assert [cell.strip() for row in shown.splitlines() if "difference" in row for cell in row.split("|")[2:5]] == [
        "0"
    ] * 6
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_validation_and_training_classes_are_evaluated_without_a_test_image(trained, folder, tmp_path):
    record = trained(folder, *RUN)
    for path in (tmp_path / "data").rglob("test*"):
        path.unlink()
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    evaluate(folder, "val", "separated")
    shown = evaluate(folder, "train", "both")
    val, train = read_evaluations(folder)
    assert val["separated"] == record.val
    assert val["separated_folds"] == {str(fold.fold): fold.val for fold in record.folds}
    assert (val["concatenated"], train["concatenated"]) == (None, None)
    assert train["separated"] != val["separated"]
    assert "Note: each fold has train images of its own" in shown
    mine = [Path(path).name for path in opened if str(tmp_path) in str(Path(path).absolute())]
    assert any(name.startswith("trainval") for name in mine)
    assert not [name for name in mine if name.startswith("test")]
    with pytest.raises(ConfigError, match="--embedding concatenated --split val: each fold has val images of its own"):
        evaluate(folder, "val", "concatenated")


@pytest.mark.slow
def test_every_use_of_the_test_classes_is_counted(trained, folder, capsys):
    trained(folder, *RUN)
    main(["show", str(folder)])
    assert "opened" not in capsys.readouterr().out
    for arguments in (["--embedding", "separated"], ["--split", "val"], ["--embedding", "concatenated"]):
        main(["evaluate", str(folder), *arguments])
    assert "test, concatenated, record" in capsys.readouterr().out
    assert [(line["split"], line["embedding"]) for line in read_evaluations(folder)] == [
        ("test", "separated"), ("val", "both"), ("test", "concatenated"),
    ]  # fmt: skip
    main(["show", str(folder / "record.json")])
    assert "Test classes opened 3 times: 1 after training, 2 by evaluate." in capsys.readouterr().out


def test_a_line_cut_off_by_a_crash_costs_no_other(tmp_path):
    append_evaluation(tmp_path, {"split": "test"})
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"split": "te')
    append_evaluation(tmp_path, {"split": "val"})
    assert [line["split"] for line in read_evaluations(tmp_path)] == ["test", "val"]
    assert read_evaluations(tmp_path / "elsewhere") == []


@pytest.mark.slow
def test_pretrained_weights_are_not_asked_for_again(trained, folder, edit):
    small = ["fold=0", "schedule.max_epochs=1", "schedule.iterations_per_epoch=1"]
    record = trained(folder, *RUN, "trunk=bn_inception", "trunk.pretrained=false", *small)
    edit(lambda content: content["settings"]["trunk"]["model"].update(pretrained="gone/weights.safetensors"))
    evaluate(folder, "test", "both")
    assert read_evaluations(folder)[0]["separated"] == record.test.separated


def test_data_that_moved_is_found_and_data_that_changed_is_noted(trained, folder, tmp_path, edit):
    trained(folder, *RUN)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert "Note: the dataset" not in evaluate(folder, "test", "both", overrides=[f"data_root={tmp_path / 'moved'}"])
    edit(lambda content: content["dataset"].update(trainval_fingerprint="another"))
    shown = evaluate(folder, "test", "both", overrides=[f"data_root={tmp_path / 'moved'}"])
    assert "Note: the dataset is not the record's: other trainval_fingerprint." in shown


@pytest.mark.slow
def test_runs_without_models_are_refused(trained, tmp_path, folder, edit):
    trained(tmp_path / "search", *QUICK, "fold=0", is_sweep_job=True)
    with pytest.raises(WeightsError, match="weights of fold 0, which were not kept"):
        evaluate(tmp_path / "search", "val", "both")
    trained(tmp_path / "untrained", "stage=untrained", "run=0", "embedder.embedding_size=16")
    with pytest.raises(RecordError, match="with trained models, found one without training"):
        evaluate(tmp_path / "untrained", "test", "both")
    trained(folder, *RUN, "fold=0")
    (folder / "fold_0" / "trunk.safetensors").unlink()
    with pytest.raises(WeightsError, match="trunk.safetensors: expected the weights of fold 0"):
        evaluate(folder, "test", "both")
    edit(lambda content: content.update(status="failed", failure="KeyboardInterrupt: "))
    with pytest.raises(RecordError, match="expected a finished run with trained models, found a failed one"):
        evaluate(folder, "test", "both")
    assert read_evaluations(folder) == []


# a record is data


def victim(content, key, value):
    node = content["settings"]
    *path, last = key.split(".")
    for name in path:
        node = node[name]
    node[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.images", {"_target_": "os.system", "command": "touch MARKER"}),
        ("trunk.model", {"_target_": "subprocess.run", "args": ["touch", "MARKER"]}),
        ("trunk.model.width", {"_target_": "os.system", "command": "touch MARKER"}),
        ("loss.function", {"_target_": "builtins.exec", "source": "open('MARKER', 'w')"}),
        ("loss.miner", {"_target_": "pathlib.Path.touch", "self": "MARKER"}),
        ("optimizer", {"_target_": "os.makedirs", "name": "MARKER", "lr": 0.1}),
        ("dataset.images._target_", ["os.system", "touch MARKER"]),
        ("dataset.images._target_", {"_target_": "os.system"}),
    ],
    ids=str,
)
def test_what_a_record_names_is_not_called(trained, folder, edit, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    trained(folder, *RUN, "fold=0")
    edit(lambda content: victim(content, key, value))
    for command in (lambda: evaluate(folder, "test", "both"), lambda: reproduce(folder)):
        with pytest.raises(ConfigError, match="the record names a class that no file of .*conf names.*--config-dir"):
            command()
    assert not list(tmp_path.rglob("MARKER"))


def test_interpolations_in_a_record_are_refused(trained, folder, edit):
    trained(folder, *RUN, "fold=0")
    edit(lambda content: victim(content, "dataset.images.seed", "${oc.env:HOME}"))
    with pytest.raises(ConfigError, match="dataset.images.seed=.*expected a plain value in a record"):
        evaluate(folder, "test", "both")


def test_the_users_own_configuration_is_trusted_where_it_is_named(trained, folder, edit, tmp_path):
    trained(folder, *RUN, "fold=0")
    own = "pytorch_metric_learning.losses.GeneralizedLiftedStructureLoss"
    edit(lambda content: victim(content, "loss.function._target_", own))
    _, record = read_run(folder)
    with pytest.raises(ConfigError, match=own):
        recorded_settings(record)
    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "lifted.yaml").write_text(f"function:\n  _target_: {own}\n")
    assert recorded_settings(record, [tmp_path / "mine"]).loss.function["_target_"] == own
    with pytest.raises(ConfigError, match="--config-dir .*nowhere: expected a folder"):
        recorded_settings(record, [tmp_path / "nowhere"])


def test_the_trusted_classes_are_those_of_our_yaml_files():
    trusted = trusted_targets([config_folder()])
    assert trusted["optimizer"] == {"torch.optim.RMSprop"}
    assert "pytorch_metric_learning.losses.ArcFaceLoss" in trusted["loss"]
    assert trusted["dataset"] >= {"mlrc_lightning.data.CUB200", "mlrc_lightning.data.Glyphs"}
    packages = {"torch", "pytorch_metric_learning", "mlrc_lightning", "pytorch_lightning"}
    assert all(name.split(".")[0] in packages for group in (*SETTINGS, "loss") for name in trusted[group])


@pytest.mark.slow
def test_records_from_before_runs_were_numbered_still_read(trained, folder, edit):
    record = trained(folder, *QUICK, "fold=0")

    def as_before(content):
        for key in ("run", "root_seed"):
            del content[key], content["settings"][key]
        content["folds"][0].pop("weight_digests")
        for part in ("trunk", "embedder"):
            (folder / "fold_0" / f"{part}.safetensors").rename(folder / "fold_0" / f"{part}_epoch2.safetensors")
            content["folds"][0]["weights"][part] = f"fold_0/{part}_epoch2.safetensors"

    edit(as_before)
    evaluate(folder, "test", "both")
    assert read_evaluations(folder)[0]["separated"] == record.test.separated
    assert "and every weight" in reproduce(folder, exact=True)


# a record says what, and the user where


@pytest.fixture
def recorded(trained, folder, edit):
    """A record as a stranger may have written it: `recorded({"trunk.pretrained": "/etc/passwd"})`."""
    trained(folder, *RUN, "fold=0")

    def changed(values):
        for key, value in values.items():
            edit(lambda content, key=key, value=value: victim(content, key, value))
        return read_run(folder)[1]

    return changed


CUB200 = {
    "_target_": "mlrc_lightning.data.CUB200",
    "root": "ROOT",
    "download": True,
    "mirrors": [[{"name": "CUB_200_2011.tgz", "urls": ["URL"]}]],
}


def test_a_record_starts_no_download_and_names_no_root(recorded, folder, tmp_path, local_server):
    local_server.files["/CUB_200_2011.tgz"] = b"from a stranger"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "CUB_200_2011.tgz").write_bytes(b"my own")
    images = {**CUB200, "root": str(tmp_path / "mine")}
    images["mirrors"] = [[{"name": "CUB_200_2011.tgz", "urls": [f"{local_server.url}/CUB_200_2011.tgz"]}]]
    recorded({"dataset.name": "cub200", "dataset.images": images})
    for command in (evaluate, reproduce):
        arguments = ("test", "both") if command is evaluate else ()
        with pytest.raises(ConfigError, match="a record says what, and not where.*Give dataset.images.root=.*mine"):
            command(folder, *arguments)
        with pytest.raises(MlrcError, match="CUB_200_2011"):
            command(folder, *arguments, overrides=[f"dataset.images.root={tmp_path / 'mine'}"])
    assert local_server.requests == []
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["CUB_200_2011.tgz"]
    assert (tmp_path / "mine" / "CUB_200_2011.tgz").read_bytes() == b"my own"


def test_places_are_the_configurations(recorded, tmp_path):
    (tmp_path / "here" / "cub200").mkdir(parents=True)
    record = recorded({"dataset.name": "cub200", "dataset.images": CUB200, "data_root": "/there", "logger": LOGGER})
    found = recorded_settings(record, overrides=[f"data_root={tmp_path / 'here'}"])
    ours = yaml.safe_load((config_folder() / "dataset" / "cub200.yaml").read_text())["images"]
    assert found.data_root == str(tmp_path / "here")
    assert found.dataset.images == {**ours, "root": str(tmp_path / "here" / "cub200"), "download": False}
    assert found.logger == yaml.safe_load((config_folder() / "logger" / "csv.yaml").read_text())
    assert recorded_settings(recorded({"dataset.images": CUB200, "dataset.name": "cub200"}), overrides=[
        "dataset.images.root=/elsewhere"
    ]).dataset.images["root"] == "/elsewhere"  # fmt: skip


LOGGER = {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "/home", "name": "../up", "version": ""}
TIMM = {"_target_": "mlrc_lightning.models.TimmTrunk", "name": "hf-hub:some/model", "pretrained": False}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset.name": "../../up"}, r"dataset.name='../../up': expected a name"),
        ({"loss.name": "/etc"}, r"loss.name='/etc': expected a name"),
        ({"trunk.model": TIMM}, r"trunk.model.name: a record says what, and not where.*Give trunk.model.name="),
        ({"trunk.pretrained": "/etc/w.pth"}, r"Give trunk.pretrained=/etc/w.pth, or trunk.pretrained=true"),
        ({"trunk.pretrained": True}, r"trunk.pretrained=True: the run began with.* Give trunk.pretrained=FILE"),
        ({"split.splitter.file": "../split.csv"}, r"Give split.splitter.file=../split.csv"),
        ({"loss.function.files": ["/etc/passwd"]}, r"loss.function.files\[0\]='/etc/passwd': a record says what"),
        ({"dataset.images.inner": {"download": True}}, r"dataset.images.inner.download=True: a record says what"),
        ({"loss.function": LOGGER}, r"the record names a class that no file of .*conf names there"),
        ({"loss.function.margin": {"_target_": "mlrc_lightning.data.CUB200"}}, r"no file of .*conf names there"),
        ({"loss.name": "a\x1b[2J"}, r"loss.name='a\\x1b\[2J': expected printable text"),
        ({"dataset.images.seed": 10**30}, r"dataset.images.seed: expected a number below 2\^64"),
        ({"trainer": 3}, r"settings.trainer=3: expected a mapping with precision"),
        ({"dataset": []}, r"settings.dataset=\[\]: expected a mapping with"),
        ({"batch_size": "32"}, r"batch_size='32': expected int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_record_may_not_say(recorded, values, message):
    with pytest.raises(MlrcError, match=message):
        recorded_settings(recorded(values))


def test_overrides_of_a_run_are_places_and_hardware(recorded):
    record = recorded({"trunk.pretrained": True, "trainer.num_workers": 9, "trainer.parallel_folds": 9})
    found = recorded_settings(record, overrides=["trunk.pretrained=false", "trainer.num_workers=2"])
    assert (found.trunk.pretrained, found.trainer.num_workers, found.trainer.parallel_folds) == (False, 2, 1)
    with pytest.raises(ConfigError, match="loss.function.margin: expected a place or a key of the trainer"):
        recorded_settings(record, overrides=["trunk.pretrained=true", "loss.function.margin=3"])


def test_folders_of_the_environment_are_the_users(recorded, tmp_path, monkeypatch):
    mine = tmp_path / "mine" / "dataset"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("name: own\nimages: {_target_: my.Images, folder: '${data_root}/pictures'}\n")
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    record = recorded({"dataset.name": "own", "dataset.images": {"_target_": "my.Images", "folder": "/there"}})
    monkeypatch.chdir(mine.parent)
    with pytest.raises(ConfigError, match="my.Images: the record names a class that no file"):
        recorded_settings(record)
    monkeypatch.setenv("MLRC_CONFIG_DIR", str(mine.parent))
    found = recorded_settings(record, overrides=[f"data_root={tmp_path / 'data'}"])
    assert found.dataset.images["folder"] == str(tmp_path / "data" / "pictures")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret", "link", "fifo", "fold_0", "a\0b"])
def test_weights_lie_inside_the_folder_of_the_run(recorded, folder, edit, tmp_path, name):
    recorded({})
    (tmp_path / "secret").write_text("mine")
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "fifo")
    edit(lambda content: content["folds"][0]["weights"].update(trunk=name))
    with pytest.raises(RecordError, match=r"weights.trunk=.*: expected a file inside of this folder"):
        evaluate(folder, "val", "both")
    with pytest.raises(RecordError, match=r"weights.trunk=.*: expected a file inside of this folder"):
        export_original(folder, tmp_path / "exported")


def test_links_in_a_run_lead_no_writing_out_of_it(recorded, folder, tmp_path):
    recorded({})
    (tmp_path / "notes").write_text("mine")
    (folder / "evaluations.jsonl").symlink_to(tmp_path / "notes")
    with pytest.raises(RecordError, match=r"evaluations.jsonl: expected a file or nothing, found a link"):
        evaluate(folder, "val", "both")
    again = folder.with_name("2-again")
    again.mkdir()
    (again / ".lock").symlink_to(tmp_path / "notes")
    with pytest.raises(RecordError, match=r"\.lock: expected a folder of files, found a link"):
        reproduce(folder)
    with pytest.raises(RecordError, match=r"\.lock: expected a file or nothing, found a link"), only_writer(again):
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_models_of_other_folds_are_refused(recorded, folder, edit):
    recorded({})
    edit(lambda content: content["folds"][0].update(fold=7))
    with pytest.raises(RecordError, match=r"expected models of the folds \(0,\), found others"):
        evaluate(folder, "val", "both")


# trained again


@pytest.mark.slow
def test_a_run_is_trained_again_beside_itself_and_is_the_same(trained, folder):
    record = trained(folder, *RUN, "fold=[0,2]")
    shown = reproduce(folder, exact=True)
    assert "The same in every figure and every weight." in shown
    assert f"{100 * record.val['precision_at_1']:.2f}" in shown
    new, again = read_run(folder.with_name("2-again"))
    assert (again.run, again.root_seed, again.seed) == (record.run, record.root_seed, record.seed)
    assert again.val == record.val
    for fold in again.folds:
        for file in fold.weights.values():
            assert (new / file).read_bytes() == (folder / file).read_bytes()
    assert reproduce(folder, "other").splitlines()[2:] == shown.splitlines()[2:-2]


def test_a_searchs_trial_stays_one_and_its_weights_are_compared_by_digest(trained, tmp_path):
    trained(tmp_path / "7", *QUICK, "fold=0", is_sweep_job=True)
    assert "and every weight" in reproduce(tmp_path / "7", exact=True)
    again = read_run(tmp_path / "7-again")[1]
    assert (again.stage, again.test) == ("search", None)


@pytest.mark.slow
def test_exact_names_what_differs(trained, folder, edit):
    trained(folder, *RUN, "fold=0")

    def other_weights(content):
        content["folds"][0]["weight_digests"]["embedder"] = "0" * 64
        content["val"]["r_precision"] += 1e-9

    edit(other_weights)
    message = "The two runs are not the same: fold 0: weights of the embedder; validation accuracies."
    with pytest.raises(RecordError, match=message):
        reproduce(folder, exact=True)
    assert "-1.0e-07" in reproduce(folder)


def test_exact_demands_the_versions_before_it_trains(trained, folder, edit, monkeypatch):
    trained(folder, *RUN, "fold=0")
    edit(lambda content: content["environment"]["packages"].update({"torch": "1.0", "gone": "2.0"}))
    monkeypatch.setattr(trial, "_run_fold", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        RecordError, match=f"gone 2.0 there, missing here; torch 1.0 there, {re.escape(version('torch'))} here"
    ):
        reproduce(folder, exact=True)


@pytest.mark.slow
def test_exact_trains_with_the_records_number_of_threads(settings, folder):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        record = run_trial(settings(*RUN, "fold=0"), folder)
        assert record.environment["num_threads"] == before + 1
        torch.set_num_threads(before)
        assert "and every weight" in reproduce(folder, exact=True)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["a/b", "3", "2", "..", ""])
def test_a_name_that_is_no_new_folder_beside_the_run_is_refused(trained, folder, name):
    trained(folder, *RUN, "fold=0")
    with pytest.raises(ConfigError, match="expected a new name for a folder"):
        reproduce(folder, name)


@pytest.mark.slow
def test_a_folder_of_another_run_is_left_as_it_is(trained, folder):
    trained(folder, *RUN, "fold=0")
    trained(folder.with_name("taken"), *QUICK, "seed=9", "fold=0")
    with pytest.raises(RecordError, match="taken holds a trial with other settings .*seed"):
        reproduce(folder, "taken")


def test_read_takes_defaults_of_records_and_none_of_settings():
    from mlrc_lightning.results.records import EpochResult

    with pytest.raises(ConfigError, match="epoch: expected a value, found none"):
        read(EpochResult, {})

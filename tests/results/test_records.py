"""What is written is read back, and a kill or a second writer loses nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import (
    only_writer,
    read_npz,
    read_plain_json,
    remove_leftovers,
    write_bytes,
    write_json,
    write_npz,
)
from mlrc_lightning.results.records import EpochResult, read_json

RESULT = EpochResult(epoch=2, train_loss=0.5, val={"mean_average_precision_at_r": 0.25}, collapsed=False, seconds=1.5)


def test_what_is_written_reads_back(tmp_path):
    write_json(tmp_path / "r.json", RESULT)
    assert read_json(tmp_path / "r.json", EpochResult) == RESULT


def test_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, RESULT)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": math.nan})
    assert read_json(path, EpochResult) == RESULT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, found a damaged file"),
        ('{"epoch": 1}', "expected a value, found none"),
        ('{"epoch": "one"}', "expected a value|expected int"),
        ('{"schema_version": 99}', "expected schema version 1, found 99"),
        ("[]", "expected schema version 1, found None"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=f"record.json.*({message})"):
        read_json(path, EpochResult)


def test_a_record_is_data_and_nothing_in_it_runs(tmp_path):
    marker = tmp_path / "ran"
    content = json.loads(json.dumps(vars(RESULT)))
    content["val"] = {"_target_": "os.system", "command": f"touch {marker}", "x": "${oc.env:HOME}"}
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match="val._target_='os.system': expected float"):
        read_json(tmp_path / "r.json", EpochResult)
    assert not marker.exists()


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_removed_and_results_are_not(tmp_path):
    (tmp_path / ".record.json.partial-123").write_bytes(b"half")
    write_bytes(tmp_path / "record.json", b"{}")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


HOLD = """
import sys, time
from pathlib import Path
from mlrc_lightning.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(RecordError, match=f"is being written by process {holder.pid} on "), only_writer(tmp_path):
        pass


def test_a_killed_writer_holds_nothing(tmp_path, holder, monkeypatch):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with only_writer(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    assert not (tmp_path / ".lock").exists()


def test_a_folder_can_be_held_again_by_the_same_process(tmp_path):
    for _ in range(2):
        with only_writer(Path(tmp_path)):
            assert (tmp_path / ".lock").exists()


# a result from anywhere


def refused(path):
    with pytest.raises(RecordError) as error:
        read_json(path, EpochResult)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "expected JSON of at most 32 levels, found more"),
        ('{"val": ' * 40 + "1" + "}" * 40, "expected JSON of at most 32 levels, found more"),
        ('{"epoch": ' + "9" * 5_000 + "}", "expected JSON, found a damaged file"),
        ("\xff\xfe", "expected JSON, found a damaged file"),
        ('{"seconds": NaN}', "seconds=nan: expected a finite number"),
        ('{"train_loss": [{"x": -Infinity}]}', r"train_loss[0].x=-inf: expected a finite number"),
        ("[]", "expected schema version 1, found None"),
        ({"seconds": "1.5"}, "seconds='1.5': expected float"),
        ({"seconds": 10**400}, "seconds=1000000"),
        ({"epoch": True}, "epoch=True: expected int"),
        ({"val": {"mean_average_precision_at_r": 17.0}}, "at_r=17.0: expected an accuracy from 0 to 1"),
        ({"val": {"mean_average_precision_at_r": 0.5, "NMI": -0.5}}, "val.NMI=-0.5: expected an accuracy from 0 to 1"),
        ({"val": {"precision_at_1": 0.5}}, "expected accuracies with mean_average_precision_at_r"),
        ({"val": {"mean_average_precision_at_r": "x" * 9_999}}, "expected float"),
        ({"more": 1}, "more: unknown key"),
    ],
    ids=str,
)
def test_reading_is_bounded_and_typed(tmp_path, text, message):
    path = tmp_path / "record.json"
    content = text if isinstance(text, str) else json.dumps({**vars(RESULT), **text})
    path.write_bytes(content.encode("latin-1"))
    assert message in refused(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "device"):
        assert "expected a file, found a folder, a pipe or a device" in refused(tmp_path / name)
        with pytest.raises(RecordError, match="expected a file, found a folder, a pipe or a device"):
            read_npz(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    assert "expected a file that can be read" in refused(tmp_path / "loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    assert "expected at most 67,108,864 bytes, found 1,099,511,627,776" in refused(tmp_path / "huge")


def test_arrays_that_unpack_to_too_much_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"index": np.zeros(10**6)})
    assert path.stat().st_size < 10**5
    with pytest.raises(RecordError, match="expected at most 100,000 bytes of arrays, found 8,000,"):
        read_npz(path, largest=10**5)


def test_brackets_in_text_are_no_levels(tmp_path):
    write_json(tmp_path / "a.json", {"failure": "[" * 99})
    assert read_plain_json(tmp_path / "a.json") == {"failure": "[" * 99}

"""What is written is read back, and a kill or a second writer loses nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import only_writer, remove_leftovers, write_bytes, write_json
from mlrc_lightning.results.records import EpochResult, read_json

RESULT = EpochResult(epoch=2, train_loss=0.5, val={"precision_at_1": 0.25}, collapsed=False, seconds=1.5)


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
    assert read_json(tmp_path / "r.json", EpochResult).val["_target_"] == "os.system"
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

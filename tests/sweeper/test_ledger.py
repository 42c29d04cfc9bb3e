import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hydra_plugins.mlrc_ax_sweeper import _ledger
from hydra_plugins.mlrc_ax_sweeper._ledger import Ledger, SearchLock, repair
from mlrc_sweeper import DamagedLedgerError, SweepError, read
from tests.reporting.tables.fakes import METRICS, signature

HEADER = {
    "created": "2026-01-01T00:00:00+00:00",
    "versions": {"ä\n": "1"},
    "max_trials": 2,
    "seed": 7,
    "signature": signature({}),
}
PROPOSED = {"trial": 0, "parameters": {"x": 0.1 + 0.2}, "generator": "Sobol"}
RESULT = {"trial": 0, "replicate": 0, "job": 0, "seconds": 1.0}


def write_three(directory: Path) -> bytes:
    ledger = Ledger(directory)
    ledger.append("search", HEADER)
    ledger.append("proposed", PROPOSED)
    ledger.append("result", {**RESULT, "metrics": {METRICS[2]: {"mean": 1e-300}}})
    ledger.close()
    return (directory / "ledger.jsonl").read_bytes()


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_three(tmp_path)
    ledger = Ledger(tmp_path)
    assert [record.type for record in ledger.records] == ["search", "proposed", "result"]
    assert ledger.records[1].payload["parameters"]["x"] == 0.1 + 0.2
    ledger.append("completed", {"trial": 0})
    ledger.close()
    assert [record.seq for record in read(tmp_path / "ledger.jsonl").records] == [0, 1, 2, 3]


def test_a_line_is_plain_json_with_a_checksum(tmp_path: Path) -> None:
    data = write_three(tmp_path)
    for number, line in enumerate(data.splitlines()):
        assert set(json.loads(line)) == {"seq", "type", "payload", "crc"}
        assert json.loads(line)["seq"] == number


def test_the_last_record_cut_at_any_byte_is_dropped_and_the_rest_is_kept(tmp_path: Path) -> None:
    data = write_three(tmp_path)
    begin_of_last = data.rindex(b"\n", 0, -1) + 1
    for cut in range(begin_of_last, len(data)):
        (tmp_path / "ledger.jsonl").write_bytes(data[:cut])
        ledger = Ledger(tmp_path)
        # the record is whole when it lacks only its line break
        assert len(ledger.records) == (3 if cut == len(data) - 1 else 2)
        ledger.append("started", {"trial": 0, "replicate": 0, "job": 0})
        ledger.close()
        assert len(read(tmp_path / "ledger.jsonl").records) == len(ledger.records)


def test_any_flipped_bit_before_the_last_line_break_is_found_and_its_line_named(tmp_path: Path) -> None:
    data = write_three(tmp_path)
    path = tmp_path / "ledger.jsonl"
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        line = data.count(b"\n", 0, position) + 1
        if position == len(data) - 1:
            # the last line break: the record cannot be told from one that was torn
            assert len(read(path).records) == 2
            continue
        with pytest.raises(DamagedLedgerError, match=f"line {line}:") as raised:
            read(path)
        assert raised.value.num_valid == line - 1


def test_repair_keeps_the_valid_prefix_and_the_damaged_file(tmp_path: Path) -> None:
    data = write_three(tmp_path)
    path = tmp_path / "ledger.jsonl"
    changed = data.replace(b'"x":0.3', b'"x":0.4')
    path.write_bytes(changed)
    with pytest.raises(DamagedLedgerError, match="repair"):
        Ledger(tmp_path)
    assert "kept 1 records; dropped 2 from line 2" in repair(tmp_path)
    assert [record.type for record in read(path).records] == ["search"]
    assert (tmp_path / "ledger.jsonl.damaged1").read_bytes() == changed
    assert "intact" in repair(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.jsonl.damaged1"]


def test_non_finite_numbers_never_reach_the_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.append("result", {"mean": float("nan")})
    assert ledger.records == []
    ledger.close()


def test_a_full_disk_leaves_the_ledger_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("search", HEADER)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:10]))
    with pytest.raises(SweepError, match="make room"):
        ledger.append("proposed", PROPOSED)
    monkeypatch.undo()
    ledger.append("proposed", PROPOSED)
    ledger.close()
    assert [record.type for record in read(tmp_path / "ledger.jsonl").records] == ["search", "proposed"]


HOLD = """
import sys, time
from pathlib import Path
from hydra_plugins.mlrc_ax_sweeper._ledger import SearchLock
with SearchLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_with_who_and_since_when(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(SweepError, match=rf"host \S+, pid {holder.pid}, since \d{{4}}-"),
            SearchLock(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    # the killed holder left its file, and the next sweeper takes it over
    assert (tmp_path / "search.lock").exists()
    with SearchLock(tmp_path):
        assert json.loads((tmp_path / "search.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


HOLD_AND_SAY_LATER = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
os.pwrite(descriptor, b'{"host": "node7", "pid": 42, "since": "2020-02-02"}', 0)
print("said", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_holder_that_has_not_yet_written_its_name_is_given_the_time_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", HOLD_AND_SAY_LATER, str(tmp_path / "search.lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        try:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            # silent as long as it pleases, it does not hold up the refusal
            with pytest.raises(SweepError, match="it has not said on which host"), SearchLock(tmp_path):
                pass

            def say(seconds: float) -> None:
                """While it is waited for, the holder writes its name."""
                assert holder.stdin is not None
                assert holder.stdout is not None
                holder.stdin.write("say\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == "said\n"

            monkeypatch.setattr(_ledger, "time", SimpleNamespace(monotonic=time.monotonic, sleep=say))
            with pytest.raises(SweepError, match="host node7, pid 42, since 2020-02-02"), SearchLock(tmp_path):
                pass
        finally:
            holder.kill()

"""The only reader of ledgers: every line is checked, by itself and against those before it."""

import stat
from dataclasses import dataclass
from pathlib import Path

from mlrc_sweeper.checks import check
from mlrc_sweeper.errors import DamagedLedgerError, SweepError
from mlrc_sweeper.records import Record, decode
from mlrc_sweeper.state import SearchState

LEDGER_NAME = "ledger.jsonl"
_LARGEST = 2**30


@dataclass(frozen=True)
class Content:
    """What a ledger file holds.

    Attributes:
        records: All valid records.
        state: What they come to.
        valid_bytes: Length of the valid part. What follows is a record whose writing was interrupted.
        lacks_line_break: Whether the last valid record lacks only its line break.
    """

    records: list[Record]
    state: SearchState
    valid_bytes: int
    lacks_line_break: bool


def read(path: Path) -> Content:
    """Returns the content of a ledger file without a torn last record.

    A record is written by one call, its line break last, so a line without one was interrupted and never
    acknowledged. Any other mismatch means that the file was changed afterwards.

    Raises:
        DamagedLedgerError: A complete line is not what a sweeper wrote there.
        SweepError: It is no file, or larger than any search's.
    """
    data = _bytes(path)
    records: list[Record] = []
    state = SearchState()
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        try:
            _follow(data[position:end], records, state)
        except ValueError as error:
            raise DamagedLedgerError(path, len(records) + 1, position, str(error)) from None
        position = end + 1
    try:
        _follow(data[position:], records, state)
    except ValueError:
        return Content(records, state, position, lacks_line_break=False)
    return Content(records, state, len(data), lacks_line_break=True)


def _bytes(path: Path) -> bytes:
    status = path.stat()  # a pipe would wait for its writer
    if not stat.S_ISREG(status.st_mode):
        raise SweepError(f"{path}: expected a ledger, found a folder, a pipe or a device. Remove it.")
    if status.st_size > _LARGEST:
        raise SweepError(f"{path}: expected a ledger of at most {_LARGEST:,} bytes, found {status.st_size:,}.")
    return path.read_bytes()


def _follow(line: bytes, records: list[Record], state: SearchState) -> None:
    record = decode(line)
    if record.seq != len(records):
        raise ValueError(f"has the number {record.seq} where {len(records)} is due")
    check(record, state)
    records.append(record)
    state.apply(record)

"""Reads searches of the sweeper from their ledgers, with the standard library alone."""

from mlrc_sweeper.errors import DamagedLedgerError, SweepError
from mlrc_sweeper.ledger import LEDGER_NAME, Content, read
from mlrc_sweeper.records import Record, decode, encode
from mlrc_sweeper.state import SearchState, Trial

__all__ = [
    "LEDGER_NAME",
    "Content",
    "DamagedLedgerError",
    "Record",
    "SearchState",
    "SweepError",
    "Trial",
    "decode",
    "encode",
    "read",
]

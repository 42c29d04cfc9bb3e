"""The errors of a search that a user can cause."""

from pathlib import Path


class SweepError(Exception):
    """A search cannot start or go on.

    The text says what was expected, what was found and what to do. `is_usage_error` lets an app show it without a
    traceback, and without an import of this class.
    """

    is_usage_error = True


class DamagedLedgerError(SweepError):
    """A line of the ledger, other than a torn last one, is not what a sweeper wrote there.

    Attributes:
        line: The line's number, from 1.
        num_valid: How many records before it are valid.
        valid_bytes: The length of these records.
    """

    def __init__(self, path: Path, line: int, valid_bytes: int, reason: str) -> None:
        """Name the line and the way out.

        Args:
            path: The ledger.
            line: The line's number, from 1.
            valid_bytes: The length of the valid records before it.
            reason: What is wrong with the record, as in "the record ...".
        """
        self.line = line
        self.num_valid = line - 1
        self.valid_bytes = valid_bytes
        super().__init__(
            f"{path}, line {line}: the record {reason}, so the file was changed or damaged after it was written. "
            f"Restore the file, or keep the {self.num_valid} valid records before that line with "
            f"`python -m hydra_plugins.mlrc_ax_sweeper repair {path.parent}` and repeat the command."
        )

"""The errors of a search."""

from mlrc_sweeper.errors import SweepError

__all__ = ["SpaceExhaustedError", "SweepError"]


class SpaceExhaustedError(Exception):
    """There is no point left that has not been tried."""

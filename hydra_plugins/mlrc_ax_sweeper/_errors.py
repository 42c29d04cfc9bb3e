"""The errors of a search."""


class SweepError(Exception):
    """A search cannot start or go on; the text says what was expected, what was found and what to do.

    `is_usage_error` lets an app show the text alone, without a traceback; no import of this class is needed.
    """

    is_usage_error = True


class SpaceExhaustedError(Exception):
    """There is no point left that has not been tried."""

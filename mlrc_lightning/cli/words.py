"""Words of a command line in any order: which are overrides, and which belong to options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_FLAGS = {
    "--verify", "--exact", "--print", "--plan", "--dry-run",
    # Hydra's
    "-m", "--multirun", "-r", "--run", "--resolve", "-h", "--help", "--hydra-help", "--version",
}  # fmt: skip
"""Options without a value."""
_LISTS = {"--losses"}
"""Options with a list, which ends at the next option or override."""


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the words of a command line without its overrides, and the overrides, each in their order.

    An override has a `=`, or begins with `~`. The word behind an option with one value is that value, and a file or
    folder that is there is no override.
    """
    others: list[str] = []
    overrides: list[str] = []
    takes_value = False
    for word in words:
        is_option = word.startswith("-")
        is_override = not is_option and ("=" in word or word.startswith("~")) and not takes_value
        (overrides if is_override and not Path(word).exists() else others).append(word)
        takes_value = is_option and "=" not in word and word not in _FLAGS | _LISTS
    return others, overrides

"""Every error that a user can cause, as one tree.

MlrcError                  one message: what was expected, what was found, what to do
├── ConfigError            a value, key or combination in the configuration
├── DatasetError           a folder, index or archive that is missing or not as its layout says
│   ├── ImageError         one image that cannot be decoded
│   ├── DiskFullError      too little room for the decoded images
│   └── SplitError         too few classes for class-disjoint folds, or a leak between splits
├── DownloadError          a file that no mirror gives, or that is not the one expected
├── WeightsError           a checkpoint or pretrained file that is missing or does not fit
├── NonFiniteError         NaN or infinity in a loss, a weight or an embedding
├── FoldError              the process of a fold died, or raised what is none of these
├── RankError              a process of several that share one trial died, or raised what is none of these
└── RecordError            a result file that is damaged or of another run
"""

from __future__ import annotations


class MlrcError(Exception):
    """Base of all errors a user can cause. Its text is the whole message.

    Attributes:
        is_usage_error: Whether repeating the job with other hyperparameters cannot help, so that a search
            stops at once instead of failing trial after trial. Entry points answer with exit code 2.
        is_final: Whether the same job with the same seed would fail again, so that a search does not repeat it.
    """

    is_usage_error = True
    is_final = False


class ConfigError(MlrcError):
    """A value, key or combination in the configuration is not acceptable."""


class DatasetError(MlrcError):
    """A dataset is missing, incomplete, or not in the layout it should have."""


class ImageError(DatasetError):
    """One image cannot be decoded."""


class DiskFullError(DatasetError):
    """The disk has too little room for the decoded images."""


class SplitError(DatasetError):
    """The classes cannot be split as the protocol demands, or two splits share one."""


class DownloadError(MlrcError):
    """No mirror gives a file, or what they give is not the file expected."""


class WeightsError(MlrcError):
    """A weight file is missing, damaged, or does not fit the model."""


class NonFiniteError(MlrcError):
    """A loss, a weight or an embedding is NaN or infinite: this trial failed, another may not."""

    is_usage_error = False
    is_final = True


class FoldError(MlrcError):
    """The process that trains a fold died or raised: this trial failed, another may not."""

    is_usage_error = False


class RankError(MlrcError):
    """One of the processes that share a trial died or raised: this trial failed, another may not."""

    is_usage_error = False


class RecordError(MlrcError):
    """A result file is damaged or belongs to another run."""


def named(kind: str) -> type[MlrcError] | None:
    """Returns the class of that name, as another process tells it. It is None where there is none."""
    known = globals().get(kind)
    return known if isinstance(known, type) and issubclass(known, MlrcError) else None

"""The rows of the tables, in the paper's order: a loss of your own is one YAML in `conf/loss` and one row here."""

from __future__ import annotations

from dataclasses import dataclass

from mlrc_lightning.names import (
    UNTRAINED_EMBEDDER,
    UNTRAINED_EMBEDDER_CONCATENATED,
    UNTRAINED_TRUNK_PCA,
    UNTRAINED_TRUNK_PCA_CONCATENATED,
)


@dataclass(frozen=True)
class LossRow:
    """One loss.

    Attributes:
        name: As in `conf/loss`.
        title: As the paper's tables call it; for a loss of your own, as yours should.
        year: When it was published.
        is_classification: Whether it has weights for each training class (batches of one image a class, §1.4).
        is_of_the_paper: Whether the paper's tables have it. One of your own is a row where there are results of it.
    """

    name: str
    title: str
    year: int
    is_classification: bool = False
    is_of_the_paper: bool = True


# years and kinds: the paper's Table 7
LOSSES = (
    LossRow("contrastive", "Contrastive", 2006),
    LossRow("triplet", "Triplet", 2006),
    LossRow("ntxent", "NTXent", 2016),
    LossRow("proxy_nca", "ProxyNCA", 2017, is_classification=True),
    LossRow("margin", "Margin", 2017),
    LossRow("margin_per_class", "Margin / class", 2017),
    LossRow("normalized_softmax", "Normalized Softmax", 2017, is_classification=True),
    LossRow("cosface", "CosFace", 2018, is_classification=True),
    LossRow("arcface", "ArcFace", 2019, is_classification=True),
    LossRow("fastap", "FastAP", 2019),
    LossRow("snr_contrastive", "SNR Contrastive", 2019),
    LossRow("multi_similarity", "Multi Similarity", 2019),
    LossRow("multi_similarity_miner", "Multi Similarity + Miner", 2019),
    LossRow("soft_triple", "SoftTriple", 2019, is_classification=True),
)


def title_of(loss: str) -> str:
    """Returns a loss's name in the tables. It is its own name where it has no row."""
    return next((row.title for row in LOSSES if row.name == loss), loss)


@dataclass(frozen=True)
class BaselineRow:
    """Accuracies without training.

    Attributes:
        name: Of the row.
        title: Where the trunk is pretrained.
        title_of_random_trunk: Where it is not.
        keys: Of `record.test.baselines`, by embedding.
    """

    name: str
    title: str
    title_of_random_trunk: str
    keys: dict[str, str]


BASELINES = (
    BaselineRow(
        "pretrained",
        "Pretrained",
        "Untrained trunk, PCA",
        {"concatenated": UNTRAINED_TRUNK_PCA_CONCATENATED, "separated": UNTRAINED_TRUNK_PCA},
    ),
    BaselineRow(
        "untrained_embedder",
        "Untrained embedder",
        "Untrained embedder",
        {"concatenated": UNTRAINED_EMBEDDER_CONCATENATED, "separated": UNTRAINED_EMBEDDER},
    ),
)

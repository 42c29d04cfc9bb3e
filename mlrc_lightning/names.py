"""Names that files, tables, figures and pages share, each in one place. Imports nothing of the package."""

from typing import Literal

METRICS = {"precision_at_1": "P@1", "r_precision": "RP", "mean_average_precision_at_r": "MAP@R"}
"""Titles of a record's accuracies."""
MAP_AT_R: Literal["mean_average_precision_at_r"] = "mean_average_precision_at_r"
"""The accuracy by which epochs, trials and searches are selected."""
NOT_READ = "could not be read"
"""What every listing says of a damaged result."""
PER_QUERY = {
    "precision_at_1": "correct_at_1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "average_precision_at_r",
}
"""What a single query's value of each accuracy is called: the mean of average precisions is MAP@R."""
EMBEDDINGS = {"concatenated": "Concatenated", "separated": "Separated"}
"""The two ways in which the models of all folds are tested, in the order of the paper's tables."""
EMBEDDING_CHOICES = (*EMBEDDINGS, "both")
"""What may be asked for."""

UNTRAINED = "untrained"
"""The stage of runs without training, and the loss in their records."""
UNTRAINED_TRUNK = "untrained_trunk"
UNTRAINED_TRUNK_PCA = "untrained_trunk_pca"
UNTRAINED_TRUNK_PCA_CONCATENATED = "untrained_trunk_pca_concatenated"
UNTRAINED_EMBEDDER = "untrained_embedder"
UNTRAINED_EMBEDDER_CONCATENATED = "untrained_embedder_concatenated"
BASELINES = {
    UNTRAINED_TRUNK: "Untrained trunk",
    UNTRAINED_TRUNK_PCA: "Untrained trunk, PCA",
    UNTRAINED_TRUNK_PCA_CONCATENATED: "Untrained trunk, PCA, concatenated",
    UNTRAINED_EMBEDDER: "Untrained embedder",
    UNTRAINED_EMBEDDER_CONCATENATED: "Untrained embedder, concatenated",
}
"""Titles of the accuracies without training in a record of a test. By PCA: to the width of the tested embedding."""

SEARCH = "search"
"""Name of the search of a loss whose best trial counts, and of the source that it is."""
SOURCES = {
    SEARCH: "the best trial of each search",
    "paper": "the paper's hyperparameters",
    "given": "hyperparameters given on the command line",
}
"""Where the hyperparameters of runs come from, and how tables, figures and pages call it."""

RECORD_FILE = "record.json"
EVALUATIONS_FILE = "evaluations.jsonl"
FOLD_FILE = "fold.json"
QUERIES_FILE = "queries_test.npz"
PROJECTION_FILE = "projection_test.npz"
NEIGHBORS_FILE = "neighbors_test.npz"
PAIRWISE_FILE = "pairwise_tests.csv"

_UNNAMED_BATCH_SIZE = 32
_BATCH = "_batch"


def setting_name(dataset: str, batch_size: int) -> str:
    """Returns the name of a setting: the dataset's, with the batch size where it is not the paper's 32."""
    return dataset if batch_size == _UNNAMED_BATCH_SIZE else f"{dataset}{_BATCH}{batch_size}"


def parts_of_setting(name: str) -> tuple[str, int]:
    """Returns dataset and batch size of a setting."""
    dataset, _, batch_size = name.rpartition(_BATCH)
    return (dataset, int(batch_size)) if dataset and batch_size.isdigit() else (name, _UNNAMED_BATCH_SIZE)

"""Slow, explicit versions of what the package computes fast: one loop a query, float64, nothing shared with it."""

import numpy as np


def retrieval_metrics_by_hand(embeddings, labels):
    """Ranks by cosine similarity, irrelevant neighbours first among equals; returns the three means and the counts."""
    found = [retrieval_by_loops(embeddings, labels, query) for query in range(len(labels))]
    queries = [values for values in found if values is not None]
    return [float(np.mean(values)) for values in zip(*queries, strict=True)], len(queries), found.count(None)


def retrieval_by_loops(embeddings, labels, query):
    """Returns correct at 1, R-Precision and AP@R of one query; None where no other sample is of its class."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = list(labels)
    label = labels[query]
    others = [i for i in range(len(labels)) if i != query]
    num_relevant = sum(labels[i] == label for i in others)
    if num_relevant == 0:
        return None
    similarity = {i: round(float(sum(units[query] * units[i])), 12) for i in others}
    ranked = sorted(others, key=lambda i: (-similarity[i], labels[i] == label))
    hits = [labels[i] == label for i in ranked[:num_relevant]]
    precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(num_relevant) if hits[i]]
    return float(hits[0]), sum(hits) / num_relevant, sum(precisions) / num_relevant

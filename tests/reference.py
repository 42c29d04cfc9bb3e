"""Slow, explicit versions of what the package computes fast: one loop a query, float64, nothing shared with it."""

import numpy as np


def retrieval_metrics_by_hand(embeddings, labels):
    """Ranks by cosine similarity, irrelevant neighbours first among equals; returns the three means and the counts."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = list(labels)
    correct, r_precisions, average_precisions, lonely = [], [], [], 0
    for query, label in enumerate(labels):
        others = [i for i in range(len(labels)) if i != query]
        num_relevant = sum(labels[i] == label for i in others)
        if num_relevant == 0:
            lonely += 1
            continue
        similarity = {i: round(float(sum(units[query] * units[i])), 12) for i in others}
        ranked = sorted(others, key=lambda i: (-similarity[i], labels[i] == label))
        hits = [labels[i] == label for i in ranked[:num_relevant]]
        correct.append(float(hits[0]))
        r_precisions.append(sum(hits) / num_relevant)
        average_precisions.append(
            sum(sum(hits[: i + 1]) / (i + 1) for i in range(num_relevant) if hits[i]) / num_relevant
        )
    means = [float(np.mean(values)) for values in (correct, r_precisions, average_precisions)]
    return means, len(correct), lonely

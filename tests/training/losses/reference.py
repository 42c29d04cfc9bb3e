"""The 14 losses from their papers' formulas: loops over pairs and triplets, float64, nothing of any library of losses.

Each takes L2-normalised embeddings (B, E), labels (B,), the loss's arguments as in conf/loss, and its own parameters;
autograd through these formulas is the reference gradient. `number` is the type that the compared code computes in:
where a smallest number of that type is part of a loss's definition, it is taken from there.
"""

import functools
import itertools
import math

import torch


def pairs(labels):
    """All ordered (anchor, positive) and (anchor, negative)."""
    return _pairs(tuple(labels))


@functools.cache
def _pairs(labels):
    ordered = list(itertools.permutations(range(len(labels)), 2))
    same = [(i, j) for i, j in ordered if labels[i] == labels[j]]
    return same, [(i, j) for i, j in ordered if labels[i] != labels[j]]


def triplets(labels):
    """All (anchor, positive, negative)."""
    return _triplets(tuple(labels))


@functools.cache
def _triplets(labels):
    same, different = pairs(labels)
    return [(a, p, n) for a, p in same for n in of_anchor(different, a)]


def of_anchor(chosen, anchor):
    """The partners of one anchor."""
    return [partner for a, partner in chosen if a == anchor]


def columns(tuples, width=2):
    return [list(column) for column in zip(*tuples, strict=True)] if tuples else [[]] * width


def distance(x, first, second, eps=0.0):
    """Euclidean, of listed pairs; eps is added to the difference, as torch.nn.functional.pairwise_distance does."""
    return (x[first] - x[second] + eps).square().sum(1).sqrt()


def mean_of_positive(terms):
    """Mean of the terms above 0; 0 where there is none."""
    return terms[terms > 0].mean() if (terms > 0).any() else terms.sum() * 0.0


def hinge(value):
    return torch.clamp(value, min=0.0)


def unit(weights, dim):
    return weights / weights.square().sum(dim, keepdim=True).sqrt()


def cross_entropy(logits, labels):
    return torch.stack([torch.logsumexp(row, 0) - row[y] for row, y in zip(logits, labels, strict=True)]).mean()


def contrastive(x, labels, *, pos_margin, neg_margin, number=None, distance=distance):
    same, different = pairs(labels)
    pull = hinge(distance(x, *columns(same)) - pos_margin)
    push = hinge(neg_margin - distance(x, *columns(different)))
    return mean_of_positive(pull) + mean_of_positive(push)


def triplet(x, labels, *, margin, number=None, eps=0.0):
    a, p, n = columns(triplets(labels), 3)
    return mean_of_positive(hinge(distance(x, a, p, eps) - distance(x, a, n, eps) + margin))


def ntxent(x, labels, *, temperature, number=torch.float64, floor=1e-20):
    """-log(p + floor), p the softmax of one positive among itself and the anchor's negatives."""
    same, different = pairs(labels)
    terms = []
    for i, p in same:
        logits = x[[p, *of_anchor(different, i)]] @ x[i] / temperature
        log_p = logits[0] - torch.logsumexp(logits, 0)
        terms.append(-torch.logaddexp(log_p, torch.tensor(math.log(floor), dtype=x.dtype)) if floor else -log_p)
    return torch.stack(terms).mean()


def proxy_nca(x, labels, *, softmax_scale, proxies, number=None):
    """-log softmax of -scale x squared distance."""
    p = unit(proxies, 1)
    terms = []
    for row, y in zip(x, labels, strict=True):
        logits = -softmax_scale * (row - p).square().sum(1)
        terms.append(torch.logsumexp(logits, 0) - logits[y])
    return torch.stack(terms).mean()


def margin(x, labels, *, margin, beta, number=None):
    """All triplets' pull and push hinges, over the number of those above 0; beta (1,) or (C,)."""
    a, p, n = columns(triplets(labels), 3)
    boundary = beta if len(beta) == 1 else beta[[labels[i] for i in a]]
    pull, push = distance(x, a, p) - boundary + margin, boundary - distance(x, a, n) + margin
    return mean_of_positive(hinge(torch.cat([pull, push])))


def normalized_softmax(x, labels, *, temperature, weights, number=None):
    return cross_entropy(x @ unit(weights, 0) / temperature, labels)


def cosface(x, labels, *, margin, scale, weights, number=None):
    cosine = x @ unit(weights, 0)
    rows = []
    for row, y in zip(cosine, labels, strict=True):
        shift = torch.zeros_like(row)
        shift[y] = margin
        rows.append(scale * (row - shift))
    return cross_entropy(torch.stack(rows), labels)


def arcface(x, labels, *, margin, scale, weights, number=None, replaces_beyond_180=True):
    """The own class's cos(theta) becomes cos(theta + m); beyond 180 - m: cos(theta) - m sin m, m in radians."""
    m = math.radians(margin)
    cosine = x @ unit(weights, 0)
    rows = []
    for row, y in zip(cosine, labels, strict=True):
        theta = torch.acos(row[y])
        is_beyond = replaces_beyond_180 and theta > math.pi - m
        own = row[y] - m * math.sin(m) if is_beyond else torch.cos(theta + m)
        rows.append(scale * torch.cat([row[:y], own[None], row[y + 1 :]]))
    return cross_entropy(torch.stack(rows), labels)


def fastap(x, labels, *, num_bins, number=None):
    """1 - average precision of each anchor from soft histograms of squared distances in [0, 4]."""
    width = 4.0 / num_bins
    losses = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        is_member = torch.tensor([labels[j] == labels[i] for j in others])
        if not is_member.any():
            continue
        squared = (x[others] - x[i]).square().sum(1)
        cumulated_positive = cumulated = precision = torch.zeros((), dtype=x.dtype)
        for center in range(num_bins + 1):
            pulse = hinge(1.0 - (squared - center * width).abs() / width)
            positive = pulse[is_member].sum()
            cumulated_positive, cumulated = cumulated_positive + positive, cumulated + pulse.sum()
            if positive > 0:
                precision = precision + positive * cumulated_positive / cumulated
        losses.append(1.0 - precision / is_member.sum())
    return torch.stack(losses).mean()


def snr_contrastive(x, labels, *, pos_margin, neg_margin, regularizer_weight, number=None):
    """Contrastive of var(anchor - other) / var(anchor), plus the mean distance of embeddings' sums from 0."""
    regularizer = x.sum(1).abs().mean()
    parts = contrastive(x, labels, pos_margin=pos_margin, neg_margin=neg_margin, distance=noise_to_signal)
    return parts + regularizer_weight * regularizer


def noise_to_signal(x, first, second):
    return variance(x[first] - x[second]) / variance(x[first])


def variance(vectors):
    return (vectors - vectors.mean(1, keepdim=True)).square().sum(1) / (vectors.shape[1] - 1)


def multi_similarity(x, labels, *, alpha, beta, base, number=None, chosen=None):
    """Soft-plus sums over each anchor's positives and negatives; the mean over all anchors."""
    same, different = pairs(labels) if chosen is None else chosen
    terms = []
    for i in range(len(x)):
        zero = x[i, :1] * 0.0
        pull = torch.cat([zero, -alpha * (x[of_anchor(same, i)] @ x[i] - base)])
        push = torch.cat([zero, beta * (x[of_anchor(different, i)] @ x[i] - base)])
        terms.append(torch.logsumexp(pull, 0) / alpha + torch.logsumexp(push, 0) / beta)
    return torch.stack(terms).mean()


def multi_similarity_miner(x, labels, *, alpha, beta, base, epsilon, number=None, with_self_pairs=False):
    chosen = mined_pairs(x.detach(), labels, epsilon, with_self_pairs)
    return multi_similarity(x, labels, alpha=alpha, beta=beta, base=base, chosen=chosen)


def mined_pairs(x, labels, epsilon, with_self_pairs=False):
    """Positives less similar than the nearest negative plus epsilon; negatives more similar than the farthest positive.

    `with_self_pairs`: an image counts among its own positives, as in pytorch-metric-learning up to 0.9.86.
    """
    same, different = pairs(labels)
    if with_self_pairs:
        same = sorted([*same, *[(i, i) for i in range(len(x))]])
    positives, negatives = [], []
    for i in range(len(x)):
        own = {p: float(x[i] @ x[p]) for p in of_anchor(same, i)}
        others = {n: float(x[i] @ x[n]) for n in of_anchor(different, i)}
        if own and others:
            positives += [(i, p) for p, s in own.items() if s - epsilon < max(others.values())]
            negatives += [(i, n) for n, s in others.items() if s + epsilon > min(own.values())]
    return positives, negatives


def soft_triple(x, labels, *, la, gamma, margin, reg_weight, centers_per_class, centers, number=None, eps=1e-5):
    """Class similarity: softmax-weighted over centres, of similarity / gamma; reg: mean distance of own centres."""
    w = unit(centers, 0).T.reshape(-1, centers_per_class, len(centers))
    rows = []
    for row, y in zip(x, labels, strict=True):
        similarities = w @ row
        share = torch.exp(similarities / gamma - torch.logsumexp(similarities / gamma, 1, keepdim=True))
        shift = torch.zeros_like(similarities[:, 0])
        shift[y] = margin
        rows.append(la * ((share * similarities).sum(1) - shift))
    loss = cross_entropy(torch.stack(rows), labels)
    if reg_weight is None:
        return loss
    s, t = columns(list(itertools.combinations(range(centers_per_class), 2)))
    return loss + reg_weight * (2.0 - 2.0 * (w[:, s] * w[:, t]).sum(2) + eps).sqrt().mean()

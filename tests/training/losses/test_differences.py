"""Where pytorch-metric-learning 2.9 is not what the paper's experiments ran (up to 0.9.86), and by how much.

The last column of docs/protocol.md, §2.4, one difference a test; what is not here is the same formula
(test_equivalence.py). docs/losses.md tells what they mean for a reproduction.
"""

import math

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.regularizers import SparseCentersRegularizer, ZeroMeanRegularizer
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch.nn.functional import normalize

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.training.losses import MeanCenterDistance, NTXentLoss, ProxyNCALoss, SoftTripleLoss
from tests.training.losses import reference
from tests.training.losses.cases import BATCHES, NUM_CLASSES, SETTINGS, batch, case, composed
from tests.training.losses.test_equivalence import relative


def unit_batch(loss, kind, number=torch.float64):
    x, labels = batch(loss, kind)
    return normalize(x.to(number), dim=1), labels


def value_and_gradient(function, x):
    """Of embeddings before normalisation, as training takes it: the part along an embedding is of no effect."""
    leaf = x.clone().requires_grad_()
    value = function(normalize(leaf, dim=1))
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def test_a_negative_contrastive_margin_has_the_gradient_of_margin_0_and_a_constant_more():
    x, labels = unit_batch("contrastive", "wide")
    below = losses.ContrastiveLoss(pos_margin=-0.2, neg_margin=0.384119)  # the optimum on CUB200
    zero = losses.ContrastiveLoss(pos_margin=0.0, neg_margin=0.384119)
    value, gradient = value_and_gradient(lambda e: below(e, labels), x)
    value_of_zero, gradient_of_zero = value_and_gradient(lambda e: zero(e, labels), x)
    assert torch.equal(gradient, gradient_of_zero)
    assert float(value - value_of_zero) == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize(("batch_size", "errors"), [(24, (1e-3, 1e-5, 1e-6)), (32, (1.0, 1e-2, 1e-6))])
def test_from_26_images_on_short_distances_are_noise_in_float32(batch_size, errors):
    """torch.cdist multiplies matrices from there on, which leaves 1e-7 in squared distances; once it subtracted."""
    for near, largest in zip((1e-4, 1e-2, 0.5), errors, strict=True):
        generator = torch.Generator().manual_seed(0)
        x = normalize(torch.randn(batch_size, 128, generator=generator), dim=1)
        step = near / math.sqrt(128) * torch.randn(128, generator=torch.Generator().manual_seed(1))
        x[1] = normalize(x[0] + step, dim=0)
        exact = float((x[0].double() - x[1].double()).norm())
        error = abs(float(LpDistance()(x)[0, 1]) - exact) / exact
        assert exact == pytest.approx(near, rel=0.2)
        assert error <= largest
        if (batch_size, near) == (32, 1e-4):
            assert error > 0.3


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_triplet_distance_had_1e_6_added_to_each_difference(setting):
    """Changes the loss by less than 1e-6 of its value, and the gradient by less than 3e-6."""
    margin = case("triplet", setting).function["margin"]
    for kind in BATCHES:
        x, labels = unit_batch("triplet", kind)
        now, gradient = value_and_gradient(lambda e, y=labels: losses.TripletMarginLoss(margin)(e, y), x)
        then, old_gradient = value_and_gradient(
            lambda e, y=labels: reference.triplet(e, y.tolist(), margin=margin, eps=1e-6), x
        )
        assert 0.0 < abs(float(now / then) - 1.0) < 1e-6
        assert relative(gradient, old_gradient) < 3e-6


def expanded_distance(x):
    """Distances as 0.9.86 took them for Contrastive, and squared for FastAP: `dist_mat` of its utils."""
    squares = x.square().sum(1)
    return (squares[:, None] + squares - 2.0 * x @ x.T).clamp(min=0.0).sqrt()


def test_contrastive_and_fastap_took_distances_by_the_expanded_square():
    """At every batch size, as torch.cdist does from 26 images on: a distance of 1e-4 was noise then too."""
    for batch_size, is_the_same in ((24, False), (32, True)):
        x = normalize(torch.randn(batch_size, 128, generator=torch.Generator().manual_seed(0)), dim=1)
        x[1] = normalize(
            x[0] + 1e-4 / math.sqrt(128) * torch.randn(128, generator=torch.Generator().manual_seed(1)), dim=0
        )
        exact = float((x[0].double() - x[1].double()).norm())
        then, now = (abs(float(of(x)[0, 1]) - exact) / exact for of in (expanded_distance, LpDistance()))
        assert then > 0.3
        assert (now > 0.3) == is_the_same


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_margin_distance_had_1e_6_added_to_each_difference(setting):
    """Changes the loss and its gradient by less than 1e-9."""
    one = case("margin", setting).function
    for kind in BATCHES:
        x, labels = unit_batch("margin", kind)
        found = []
        for epsilon in (0.0, 1e-6):

            def then(e, y=labels, eps=epsilon):
                a, p, n = reference.columns(reference.triplets(y.tolist()), 3)
                pairs = (torch.nn.functional.pairwise_distance(e[other], e[a], eps=eps) for other in (p, n))
                near, far = pairs
                return reference.mean_of_positive(
                    torch.cat([near - one["beta"] + one["margin"], one["beta"] - far + one["margin"]]).clamp(min=0.0)
                )

            found.append(value_and_gradient(then, x))
        assert abs(float(found[1][0] / found[0][0]) - 1.0) < 1e-9
        assert relative(found[1][1], found[0][1]) < 1e-9


THEN, NOW = 1e-20, torch.finfo(torch.float32).tiny


def ntxent_by_floor(setting, kind):
    """Value and gradient of the formula, by the floor under its logarithm; 0: none."""
    temperature = case("ntxent", setting).function["temperature"]
    x, labels = unit_batch("ntxent", kind)
    return {
        floor: value_and_gradient(
            lambda e, f=floor: reference.ntxent(e, labels.tolist(), temperature=temperature, floor=f), x
        )
        for floor in (THEN, NOW, 0.0)
    }


@pytest.mark.parametrize(
    ("setting", "kind", "then", "now", "formula", "lost_gradient"),
    [
        ("sop", "wide", 15.72, 27.25, 76.64, 0.31),
        ("sop", "crowded", 28.85, 54.57, 737.44, 0.20),
        ("cub200", "crowded", 15.35, 19.11, 19.49, 0.22),
    ],
)
def test_the_floor_of_ntxent_s_logarithm_was_1e_20(setting, kind, then, now, formula, lost_gradient):
    """A pair less probable than the floor has no gradient: below 1e-20 then, below 1.2e-38 now in float32.

    It decides at the temperature of SOP's optimum, 0.00024, where differences of cosines of 0.011 pass the old floor
    and of 0.021 today's: the gradient then was 20 to 31 % shorter than now.
    """
    found = ntxent_by_floor(setting, kind)
    assert [float(found[floor][0]) for floor in (THEN, NOW, 0.0)] == pytest.approx([then, now, formula], abs=0.01)
    norms = {floor: float(gradient.norm()) for floor, (_, gradient) in found.items()}
    assert 1.0 - norms[THEN] / norms[NOW] == pytest.approx(lost_gradient, abs=0.01)
    x, labels = unit_batch("ntxent", kind, torch.float32)
    temperature = case("ntxent", setting).function["temperature"]
    assert float(losses.NTXentLoss(temperature)(x, labels)) == pytest.approx(now, abs=0.01)
    assert float(NTXentLoss(temperature)(x, labels)) == pytest.approx(then, abs=0.01)


def ntxent_of_0_9_86(embeddings, labels, temperature):
    """Value as pytorch-metric-learning 0.9.86 computes it, word for word: losses/ntxent_loss.py."""
    similarities = embeddings @ embeddings.t()
    a1, p, a2, n = get_all_pairs_indices(labels)
    pos_pairs = similarities[a1, p].unsqueeze(1) / temperature
    neg_pairs = similarities[a2, n] / temperature
    n_per_p = (a2.unsqueeze(0) == a1.unsqueeze(1)).float()
    neg_pairs = neg_pairs * n_per_p
    neg_pairs[n_per_p == 0] = float("-inf")
    max_val = torch.max(pos_pairs, torch.max(neg_pairs, dim=1, keepdim=True)[0])
    numerator = torch.exp(pos_pairs - max_val).squeeze(1)
    denominator = torch.sum(torch.exp(neg_pairs - max_val), dim=1) + numerator
    return torch.mean(-torch.log((numerator / denominator) + 1e-20))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", [*BATCHES, "scattered"])
def test_ntxent_is_that_of_0_9_86_in_value_and_gradient(setting, kind):
    temperature = case("ntxent", setting).function["temperature"]
    if kind == "scattered":  # as before any training: no class is nearer than another
        x = normalize(torch.randn(32, 128, generator=torch.Generator().manual_seed(0)), dim=1)
        labels = torch.arange(8).repeat_interleave(4)
    else:
        x, labels = unit_batch("ntxent", kind, torch.float32)
    value, gradient = value_and_gradient(lambda e: NTXentLoss(temperature)(e, labels), x)
    then, gradient_then = value_and_gradient(lambda e: ntxent_of_0_9_86(e, labels, temperature), x)
    assert float(value) == pytest.approx(float(then), rel=2e-6)
    assert relative(gradient, gradient_then) < 5e-5
    if (setting, kind) == ("sop", "scattered"):
        assert abs(float(losses.NTXentLoss(temperature)(x, labels)) / float(then)) > 1.5


def test_ntxent_without_pairs_is_zero():
    x = normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    for labels in ([0, 1, 2, 3], [0, 0, 0, 0]):
        assert float(NTXentLoss(0.1)(x, torch.tensor(labels))) == 0.0


@pytest.mark.parametrize(
    ("setting", "kind", "largest"),
    [
        ("cub200", "wide", 1e-12),
        ("cars196", "wide", 1e-12),
        ("cars196", "crowded", 3e-3),
        ("cub200_batch256", "wide", 1e-12),
    ],
)
def test_ntxent_s_floor_hardly_matters_at_the_other_optima(setting, kind, largest):
    found = ntxent_by_floor(setting, kind)
    assert relative(found[THEN][1], found[NOW][1]) < largest


def test_arcface_changes_the_logit_only_beyond_180_degrees_minus_the_margin():
    """At theta = 175, m = 23.2259 degrees: cos(theta) - m sin(m) = -1.156 now, cos(theta + m) = -0.950 then."""
    degrees = case("arcface", "cub200").function["margin"]
    loss = losses.ArcFaceLoss(2, 2, margin=degrees, scale=1.0).double()
    loss.W.data = torch.eye(2, dtype=torch.float64)
    m = math.radians(degrees)
    for theta, is_beyond in ((100.0, False), (156.0, False), (157.5, True), (175.0, True)):
        angle = math.radians(theta)
        x = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        own = loss.modify_cosine_of_target_classes(x[:, 0]).item()
        then = math.cos(angle + m)
        now = math.cos(angle) - m * math.sin(m) if is_beyond else then
        assert own == pytest.approx(now, abs=1e-12)
        assert abs(now - then) == pytest.approx({157.5: 0.0837, 175.0: 0.2061}.get(theta, 0.0), abs=1e-3)


def test_a_batch_without_such_angles_gives_the_arcface_of_then():
    one = case("arcface", "cub200")
    x, labels = unit_batch("arcface", "wide")
    weights = one.objective(128, torch.float64).loss.W.detach()
    arguments = {"margin": one.function["margin"], "scale": one.function["scale"], "weights": weights}
    values = [
        reference.arcface(x, labels.tolist(), **arguments, replaces_beyond_180=replaces) for replaces in (True, False)
    ]
    assert values[0] == values[1]


def test_an_embedding_on_its_class_weight_has_no_arcface_gradient():
    """The arc cosine of exactly 1 has an infinite slope: NaN now; 0 then, when cosines were clamped to 1 - 1e-7."""
    loss = losses.ArcFaceLoss(2, 2, margin=20.0, scale=64.0)
    loss.W.data = torch.eye(2)
    _, gradient = value_and_gradient(lambda e: loss(e, torch.tensor([0])), torch.tensor([[1.0, 0.0]]))
    assert gradient.isnan().any()
    # a hundredth of a degree away is the nearest that float32 tells from 0
    angle = math.radians(0.03)
    near = torch.tensor([[math.cos(angle), math.sin(angle)]])
    _, gradient = value_and_gradient(lambda e: loss(e, torch.tensor([0])), near)
    assert gradient.isfinite().all()


def test_proxy_nca_is_finite_where_the_library_s_probability_is_below_float32():
    """From a scale of 22 on, in the searched range, exp(-scale x distance) may be subnormal or 0."""
    of_the_library, ours = losses.ProxyNCALoss(2, 2), ProxyNCALoss(2, 2)
    x, labels = torch.tensor([[-1.0, 0.0], [0.6, 0.8]]), torch.tensor([0, 0])
    found = {}
    for loss in (of_the_library, ours):
        loss.proxies.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        for scale in (20.0, 23.0, 30.0, 100.0):  # p of the first image: 2e-35, 1e-40, 8e-53, 2e-174
            loss.softmax_scale = scale
            found[loss, scale] = value_and_gradient(lambda e: loss(e, labels), x)  # noqa: B023
    for scale in (20.0, 23.0, 30.0, 100.0):  # the mean of 4 x scale and nearly 0
        assert float(found[ours, scale][0]) == pytest.approx(2 * scale, rel=1e-6)
        assert found[ours, scale][1].isfinite().all()
    torch.testing.assert_close(found[ours, 20.0][1], found[of_the_library, 20.0][1])
    assert found[of_the_library, 23.0][1].isnan().any()
    assert float(found[of_the_library, 30.0][0]) < 1e-6  # the image is left out of the mean
    assert torch.equal(found[of_the_library, 30.0][1][0], torch.zeros(2))


@pytest.mark.parametrize("loss", ["margin", "margin_per_class"])
def test_margin_s_beta_has_no_penalty(loss):
    """So that the change of its reduction, mean to sum, is of no effect: nu is 0."""
    objective = case(loss, "cub200").objective(128, torch.float64)
    assert objective.loss.nu == 0.0
    assert objective.loss.beta.requires_grad


def test_snr_s_regularizer_sees_the_embeddings_as_they_come():
    """On embeddings of length 3 it is 3 times as large; the module hands over length 1, as the original normalised."""
    one = case("snr_contrastive", "cub200")
    weight = one.function["embedding_reg_weight"]
    x, labels = batch("snr_contrastive", "wide")
    x = 3.0 * normalize(x.double(), dim=1)
    loss = one.objective(128, torch.float64).loss
    of_raw, of_unit = loss(x, labels), loss(normalize(x, dim=1), labels)
    sums = normalize(x, dim=1).sum(1).abs().mean()
    assert float(of_raw - of_unit) == pytest.approx(2.0 * weight * float(sums), rel=1e-9)


def test_snr_with_weight_0_is_the_loss_without_the_regularizer():
    x, labels = unit_batch("snr_contrastive", "crowded")
    margins = {"pos_margin": 0.167051, "neg_margin": 0.933756}
    without = losses.SignalToNoiseRatioContrastiveLoss(**margins)
    with_it = losses.SignalToNoiseRatioContrastiveLoss(
        **margins, embedding_regularizer=ZeroMeanRegularizer(), embedding_reg_weight=0.0
    )
    expected, expected_gradient = value_and_gradient(lambda e: without(e, labels), x)
    value, gradient = value_and_gradient(lambda e: with_it(e, labels), x)
    assert value == expected
    assert torch.equal(gradient, expected_gradient)


def mined(x, labels, epsilon, with_self_pairs):
    positives, negatives = reference.mined_pairs(x, labels.tolist(), epsilon, with_self_pairs)
    return set(positives), set(negatives)


@pytest.mark.slow
def test_the_miner_chooses_the_pairs_of_its_definition():
    for kind in ("wide", "crowded"):
        for setting in SETTINGS:
            epsilon = case("multi_similarity_miner", setting).miner["epsilon"]
            x, labels = unit_batch("multi_similarity_miner", kind)
            a1, p, a2, n = MultiSimilarityMiner(epsilon)(x, labels)
            found = set(zip(a1.tolist(), p.tolist(), strict=True)), set(zip(a2.tolist(), n.tolist(), strict=True))
            assert found == mined(x, labels, epsilon, with_self_pairs=False)


@pytest.mark.parametrize(
    ("setting", "share", "change"),
    [("cub200", 0.81, 0.0020), ("cars196", 1.0, 0.0089), ("sop", 0.69, 0.0018), ("cub200_batch256", 0.84, 0.0156)],
)
def test_the_miner_of_then_could_take_an_image_for_its_own_positive(setting, share, change):
    """Where some negative is more similar than 1 - epsilon: on this batch for 69 to 100 % of the images.

    The self-pair has no gradient; it takes a share of the softmax over positives from those that have, 0.2 to 1.6 % of
    the gradient. The negatives are the same.
    """
    x, labels = unit_batch("multi_similarity_miner", "crowded")
    one = case("multi_similarity_miner", setting)
    arguments = {k: v for k, v in (one.function | one.miner).items() if k != "_target_"}
    now, then = (mined(x, labels, arguments["epsilon"], with_self) for with_self in (False, True))
    assert then[1] == now[1]
    assert now[0] <= then[0]
    extra = then[0] - now[0]
    assert all(anchor == positive for anchor, positive in extra)
    assert len(extra) / len(x) == pytest.approx(share, abs=0.01)
    gradient_now, gradient_then = (
        value_and_gradient(
            lambda e, w=with_self: reference.multi_similarity_miner(e, labels.tolist(), **arguments, with_self_pairs=w),
            x,
        )[1]
        for with_self in (False, True)
    )
    assert relative(gradient_then, gradient_now) == pytest.approx(change, rel=0.05)


@pytest.mark.slow
def test_self_pairs_at_batch_256_are_some_2_per_cent():
    """64 classes of 4 images that overlap: 1.5 % of the gradient."""
    one = case("multi_similarity_miner", "cub200_batch256")
    arguments = {k: v for k, v in (one.function | one.miner).items() if k != "_target_"}
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(64).repeat_interleave(4)
    centers = torch.randn(64, 5, generator=generator)
    x = (centers[labels] + 0.7 * torch.randn(256, 5, generator=generator)).double()
    now, then = (
        value_and_gradient(
            lambda e, w=w: reference.multi_similarity_miner(e, labels.tolist(), **arguments, with_self_pairs=w),
            normalize(x, dim=1),
        )[1]
        for w in (False, True)
    )
    assert relative(then, now) == pytest.approx(0.0152, rel=0.05)


def soft_triple_of_2_9(one, factor):
    """The library's own, at a case's arguments, its regulariser weighted by reg_weight x factor."""
    centers = one.function["centers_per_class"]
    return losses.SoftTripleLoss(
        NUM_CLASSES,
        128,
        centers_per_class=centers,
        **{key: one.function[key] for key in ("la", "gamma", "margin")},
        weight_regularizer=SparseCentersRegularizer(NUM_CLASSES, centers),
        weight_reg_weight=factor * one.function["reg_weight"],
    ).double()


@pytest.mark.parametrize(("setting", "missing"), [("cub200", 0.265), ("cars196", 0.047), ("cub200_batch256", 0.313)])
def test_soft_triple_s_regularizer_was_twice_that_of_2_9(setting, missing):
    """2.9 divides by twice the number of pairs of centres, as the authors' code does; with a factor of 2 it agrees."""
    one = case("soft_triple", setting)
    x, labels = unit_batch("soft_triple", "wide")
    ours = one.objective(128, torch.float64).loss
    values, gradients = [], []
    for loss in (ours, soft_triple_of_2_9(one, factor=1.0), soft_triple_of_2_9(one, factor=2.0)):
        loss.fc.data = ours.fc.data.clone()
        value = loss(x, labels)
        values.append(float(value.detach()))
        gradients.append(torch.autograd.grad(value, loss.fc)[0])
    assert values[0] - values[1] == pytest.approx(missing, abs=2e-3)
    # what is left is the constant under the square root: 1e-5 then and here, the smallest float in 2.9
    assert 0.0 < values[0] - values[2] < 5e-6 * one.function["reg_weight"]
    assert relative(gradients[0], gradients[2]) < 1e-5


def test_centers_that_agree_have_no_gradient_in_2_9():
    """NaN in 2.9; then, and here, sqrt(1e-5) = 0.0032 instead of 0, with a gradient of 0."""
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    value, gradient = value_and_gradient(SparseCentersRegularizer(1, 2), same)
    assert float(value) == 0.0
    assert gradient.isnan().all()
    value, gradient = value_and_gradient(MeanCenterDistance(2), same)
    assert float(value) == pytest.approx(math.sqrt(1e-5), rel=1e-2)
    assert torch.equal(gradient, torch.zeros(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("is_ours", [True, False])
def test_2_9_s_regularizer_ends_a_training_at_the_optimum_on_cub200(is_ours):
    """Its centres merge within some 1,200 iterations; the embeddings stand still here, as they nearly do at 1e-6."""
    function = case("soft_triple", "cub200").function
    torch.manual_seed(0)
    arguments = {"num_classes": 75, "embedding_size": 128, "centers_per_class": 10}
    arguments |= {key: function[key] for key in ("la", "gamma", "margin")}
    if is_ours:
        loss = SoftTripleLoss(**arguments, reg_weight=function["reg_weight"])
    else:
        regularizer = SparseCentersRegularizer(75, 10)
        loss = losses.SoftTripleLoss(
            **arguments, weight_regularizer=regularizer, weight_reg_weight=2.0 * function["reg_weight"]
        )
    lr = composed("soft_triple", "cub200").loss.optimizer.lr
    optimizer = torch.optim.RMSprop(loss.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    of_class = torch.randn(75, 128)
    for _ in range(2000):
        labels = torch.randperm(75)[:32]
        optimizer.zero_grad()
        loss(normalize(of_class[labels] + 2.0 * torch.randn(32, 128), dim=1), labels).backward()
        if not loss.fc.grad.isfinite().all():
            break
        optimizer.step()
    assert bool(loss.fc.grad.isfinite().all()) == is_ours


def test_soft_triple_with_one_center_is_cosface_with_its_scale():
    """An identity of the formulas: one centre leaves the softmax over centres nothing to choose."""
    one = case("soft_triple", "sop")
    x, labels = unit_batch("soft_triple", "wide")
    loss = one.objective(128, torch.float64).loss
    assert loss.weight_regularizer is None
    cosface = losses.CosFaceLoss(NUM_CLASSES, 128, margin=one.function["margin"], scale=one.function["la"]).double()
    cosface.W.data = loss.fc.data
    assert float(loss(x, labels).detach()) == pytest.approx(float(cosface(x, labels).detach()), rel=1e-12)


@pytest.mark.parametrize(("centers", "weight"), [(1, 0.2), (10, None)])
def test_a_regularizer_weight_without_effect_is_refused(centers, weight):
    with pytest.raises(ConfigError, match="reg_weight=.*expected a number if and only if there are several centres"):
        SoftTripleLoss(4, 8, centers_per_class=centers, la=20.0, gamma=0.1, margin=0.01, reg_weight=weight)


def test_soft_triple_s_centers_start_as_the_original_s():
    """kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(fan in), the fan in being all centres."""
    loss = case("soft_triple", "cub200").objective(128, torch.float32).loss
    bound = 1.0 / math.sqrt(loss.fc.shape[1])
    assert float(loss.fc.detach().abs().max()) <= bound
    assert float(loss.fc.detach().abs().max()) > 0.99 * bound

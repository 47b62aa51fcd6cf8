"""The similarity functions against oracles written straight from CLIP-Dissect's definitions, in float64 numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from neuronbench.describe import similarity
from neuronbench.describe.similarity import SIMILARITIES, Cosines, cos, cos_cubed, rank_reorder, soft_wpmi, soft_wpmi_odds, standing_out, wpmi


def naive_order(activations):
    return np.argsort(-activations, axis=0, kind="stable")


def naive_prior(log_sums):
    return logsumexp(log_sums, axis=0) - np.log(len(log_sums))


def naive_wpmi(scores, activations, top_k=28, a=2, lam=0.6):
    q = softmax(a * scores, axis=1)
    top = naive_order(activations)[:top_k]
    sums = np.stack([np.log(q[top[:, u]] + 1e-7).sum(0) for u in range(activations.shape[1])])
    return sums - lam * naive_prior(sums)


def naive_soft_wpmi(scores, activations, top_k=100, a=10, lam=1, p_start=0.998, p_end=0.97):
    q = softmax(a * scores, axis=1)
    top_k = min(top_k, len(scores))
    top = naive_order(activations)[:top_k]
    p = (p_start - np.arange(top_k) / top_k * (p_start - p_end))[:, None]
    sums = np.stack([np.log(1 + p * (q[top[:, u]] - 1) + 1e-7).sum(0) for u in range(activations.shape[1])])
    return sums - lam * naive_prior(sums)


def naive_cos(scores, activations):
    return (activations / np.linalg.norm(activations, axis=0)).T @ (scores / np.linalg.norm(scores, axis=0))


def naive_cos_cubed(scores, activations):
    cubed = [(values - values.mean(0)) ** 3 for values in (activations, scores)]
    units, concepts = [values / np.maximum(np.linalg.norm(values, axis=0), 1e-3) for values in cubed]
    return units.T @ concepts


def naive_rank_reorder(scores, activations, p=3, top_fraction=0.05, scale_p=0.5, seed=0):
    n = int(len(scores) * top_fraction)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(5)]
    result = np.empty((activations.shape[1], scores.shape[1]))
    for u in range(activations.shape[1]):
        top = naive_order(activations)[:n, u][::-1]
        a = activations[top, u]
        baseline = np.mean([np.abs(a - a[order]) ** p for order in orders])
        for c in range(scores.shape[1]):
            ranks = np.argsort(np.argsort(scores[top, c], kind="stable"), kind="stable")
            error = np.mean(np.abs(a - np.sort(a)[ranks]) ** p) / baseline
            result[u, c] = -error / scores[top, c].mean() ** scale_p
    return result


NAIVE = {"soft_wpmi": naive_soft_wpmi, "wpmi": naive_wpmi, "cos": naive_cos, "cos_cubed": naive_cos_cubed,
         "rank_reorder": naive_rank_reorder}


def random_case(images, concepts, units, spread, seed):
    """Scores like CLIP's cosines (mean 0.3, never negative) and activations after a ReLU: many zeros, hence ties."""
    rng = np.random.default_rng(seed)
    scores = np.clip(rng.normal(0.3, spread, (images, concepts)), 0.01, 1).astype("f4").astype("f8")
    activations = np.maximum(rng.normal(0, 1, (images, units)), 0).astype("f4").astype("f8") + 0.0
    activations[0] += 0.5  # no unit is zero everywhere
    return scores, activations


cases = dict(images=st.integers(1, 260), concepts=st.integers(1, 90), units=st.integers(1, 9),
             spread=st.sampled_from([0.01, 0.05, 0.3]), seed=st.integers(0, 10**6))


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi", "cos", "cos_cubed"])
@settings(max_examples=60, deadline=None)
@given(**cases)
def test_definition(name, images, concepts, units, spread, seed):
    scores, activations = random_case(images, concepts, units, spread, seed)
    found = SIMILARITIES[name](scores, activations)
    expected = NAIVE[name](scores, activations)
    assert found.shape == (units, concepts) and found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(images=st.integers(40, 300), concepts=st.integers(1, 40), units=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_rank_reorder_is_its_definition(images, concepts, units, seed):
    scores, activations = random_case(images, concepts, units, 0.05, seed)
    activations += np.random.default_rng(seed).uniform(0, 0.1, activations.shape).astype("f4")
    np.testing.assert_allclose(rank_reorder(scores, activations).numpy(), naive_rank_reorder(scores, activations), rtol=2e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(top_k=st.integers(1, 150), a=st.sampled_from([0.5, 10, 60]), lam=st.sampled_from([0, 0.5, 1]),
       p_end=st.sampled_from([0.0, 0.5, 0.9]), p_start=st.sampled_from([0.9, 0.998, 1.0]), seed=st.integers(0, 10**6))
def test_soft_wpmi_with_other_settings(top_k, a, lam, p_end, p_start, seed):
    scores, activations = random_case(120, 30, 6, 0.2, seed)
    options = dict(top_k=top_k, a=a, lam=lam, p_end=p_end, p_start=p_start)
    expected = naive_soft_wpmi(scores, activations, **options)
    # float32 cannot tell log probabilities closer than its rounding at the size that `a` gives them
    np.testing.assert_allclose(soft_wpmi(scores, activations, **options).numpy(), expected, atol=2e-3 if a == 60 else 1e-3)


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_many_blocks_give_the_same_as_one(name, monkeypatch):
    scores, activations = random_case(200, 333, 7, 0.05, seed=1)
    whole = SIMILARITIES[name](scores, activations)
    monkeypatch.setattr(similarity, "_blocks", lambda n, rows, device: [slice(s, min(s + 10, n)) for s in range(0, n, 10)])
    torch.testing.assert_close(SIMILARITIES[name](scores, activations), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_cosines_computed_on_reading_give_the_same(name):
    rng = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 16, generator=rng) + 1, dim=1) for n in (100, 150))
    activations = torch.randn(100, 5, generator=rng)
    torch.testing.assert_close(SIMILARITIES[name](Cosines(images, texts), activations),
                               SIMILARITIES[name](images @ texts.T, activations), atol=1e-4, rtol=1e-4)


def test_the_prior_is_over_all_units():
    scores, activations = random_case(150, 20, 8, 0.05, seed=2)
    assert not torch.allclose(soft_wpmi(scores, activations)[:2], soft_wpmi(scores, activations[:, :2]), atol=1e-3)


def test_probability_near_one_and_near_zero():
    scores = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    activations = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    for a in (1, 10, 100):
        np.testing.assert_allclose(soft_wpmi(scores, activations, a=a).numpy(), naive_soft_wpmi(scores, activations, a=a), atol=1e-3)


def test_equal_activations_are_ordered_by_position():
    order = similarity._largest(torch.tensor([[0.0, 1.0], [-0.0, 1.0], [5.0, 1.0], [0.0, 1.0], [-2.0, 1.0]]), 5)
    assert order.tolist() == [[2, 0, 1, 3, 4], [0, 1, 2, 3, 4]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=30))
def test_order_is_a_stable_sort(rows):
    activations = torch.tensor(rows, dtype=torch.float32)
    expected = torch.sort(activations + 0.0, dim=0, descending=True, stable=True).indices.T
    assert torch.equal(similarity._largest(activations, len(rows)), expected)


def test_units_of_zeros_have_no_cosine():
    scores, activations = random_case(60, 5, 3, 0.05, seed=3)
    activations[:, 1] = 0
    assert cos(scores, activations)[1].tolist() == [0] * 5
    assert cos_cubed(scores, activations)[1].tolist() == [0] * 5
    assert torch.isfinite(rank_reorder(scores, activations)).all()


def test_rank_reorder_prefers_present_concepts_and_survives_negative_means():
    scores, activations = random_case(60, 3, 2, 0.05, seed=4)
    scores[:, 1] = -scores[:, 0]
    found = rank_reorder(scores, activations)
    assert torch.isfinite(found).all() and (found[:, 1] < found[:, 0]).all()


def test_rank_reorder_is_the_same_twice_and_reads_its_seed():
    scores, activations = random_case(100, 8, 2, 0.05, seed=5)
    assert torch.equal(rank_reorder(scores, activations), rank_reorder(scores, activations))
    assert not torch.equal(rank_reorder(scores, activations), rank_reorder(scores, activations, seed=1))


@pytest.mark.parametrize("name", list(SIMILARITIES))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(name, value):
    scores, activations = random_case(60, 5, 6, 0.05, seed=6)
    activations[7, 4] = value
    with pytest.raises(ValueError, match="activations of 1 units are not finite: 4"):
        SIMILARITIES[name](scores, activations)
    scores[0, 0] = value
    with pytest.raises(ValueError, match="concept scores are not finite"):
        SIMILARITIES[name](scores, np.ones((60, 2)))


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_shapes_that_do_not_match(name):
    function = SIMILARITIES[name]
    with pytest.raises(ValueError, match="of 50 images, activations of 40"):
        function(np.zeros((50, 3)), np.zeros((40, 2)))
    with pytest.raises(ValueError, match="got shapes"):
        function(np.zeros(50), np.zeros((50, 2)))
    for shapes in ([(50, 0), (50, 2)], [(50, 3), (50, 0)], [(0, 3), (0, 2)]):
        with pytest.raises(ValueError, match="nothing to compare"):
            function(*map(np.zeros, shapes))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="p_end <= p_start"):
        soft_wpmi(np.zeros((5, 2)), np.zeros((5, 2)), p_start=0.5, p_end=0.9)
    with pytest.raises(ValueError, match="two top images"):
        rank_reorder(np.zeros((30, 2)), np.zeros((30, 2)))


def test_integers_and_half_precision_are_taken():
    activations = np.arange(60).reshape(30, 2)
    scores = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wpmi(scores, activations), wpmi(scores, activations.astype("f4")))
    assert torch.equal(wpmi(scores.half(), activations), wpmi(scores.half().float(), activations))


DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_the_result_lies_where_the_scores_lie(name, device):
    scores, activations = random_case(300, 500, 20, 0.05, seed=7)
    found = SIMILARITIES[name](torch.tensor(scores, device=device), activations)
    assert found.device.type == device
    np.testing.assert_allclose(found.cpu().numpy(), NAIVE[name](scores, activations), atol=5e-3, rtol=1e-3)


def test_arrays_that_may_not_be_written_are_read_without_a_warning(recwarn):
    scores, activations = random_case(30, 4, 2, 0.05, seed=8)
    scores.flags.writeable = activations.flags.writeable = False
    wpmi(scores, activations)
    assert not recwarn.list


@settings(max_examples=40, deadline=None)
@given(images=st.integers(1, 200), units=st.integers(1, 12), most=st.integers(1, 120), height=st.sampled_from([0.3, 0.5, 2 / 3, 0.9]), seed=st.integers(0, 10**6))
def test_images_that_stand_out_are_counted_as_defined(images, units, most, height, seed):
    activations = np.random.default_rng(seed).exponential(size=(images, units)).astype("f4")
    middle = np.sort(activations, axis=0)[(images - 1) // 2]
    counts = (activations - middle >= np.float32(height) * (activations.max(0) - middle)).sum(0)
    expected = images if images == 1 else np.sort(counts)[(units - 1) // 2]
    assert standing_out(activations, most, height) == min(most, images, expected)


def one_of_each(concepts, per_concept, seed=0):
    """Units and concepts of which each image shows one, and is something like the next five."""
    chance = np.random.default_rng(seed)
    shows = np.repeat(np.eye(concepts), per_concept, axis=0)
    alike = shows + sum((0.6 - 0.08 * step) * np.roll(shows, step, axis=1) for step in range(1, 6))
    return 0.2 * alike + chance.normal(0, 0.03, alike.shape), alike + chance.normal(0, 0.1, alike.shape)


@pytest.mark.parametrize("per_concept", [1, 3, 10, 40])
def test_about_as_many_images_stand_out_as_a_concept_has_and_no_result_is_lost(per_concept):
    scores, activations = one_of_each(40, per_concept)
    top_k = standing_out(activations)
    right = {number: (soft_wpmi(scores, activations, number).argmax(1) == torch.arange(40)).float().mean() for number in (top_k, 100)}
    assert 0.7 * per_concept <= top_k <= 1.3 * per_concept
    assert right[top_k] >= 0.87 and right[top_k] >= right[100]


def test_a_unit_spread_normally_over_the_papers_images_has_the_papers_number():
    assert standing_out(np.random.default_rng(0).normal(size=(50_000, 15))) == 100


def test_constant_units_have_no_say_and_nothing_depends_on_scale_or_offset():
    activations = np.random.default_rng(1).exponential(size=(300, 5))
    count = standing_out(activations)
    assert standing_out(np.concatenate([activations, np.ones((300, 9))], axis=1)) == count == standing_out(1e3 * activations - 40)
    assert standing_out(np.ones((300, 9))) == 100 and standing_out(np.ones((30, 9))) == 30


def test_standing_out_in_many_blocks_is_the_same(monkeypatch):
    activations = np.random.default_rng(2).exponential(size=(200, 33))
    whole = standing_out(activations)
    monkeypatch.setattr(similarity, "_blocks", lambda n, rows, device: [slice(s, min(s + 5, n)) for s in range(0, n, 5)])
    assert standing_out(activations) == whole


@pytest.mark.parametrize("activations, wrong", [(np.zeros(5), r"expected \(image, unit\), got shape \(5,\)"), (np.zeros((0, 3)), "got shape"), (np.zeros((3, 0)), "got shape"),
                                                (np.array([[1, 2], [3, np.nan]]), "activations of 1 units are not finite: 1")])
def test_what_cannot_stand_out_is_refused(activations, wrong):
    with pytest.raises(ValueError, match=wrong):
        standing_out(activations)


def test_the_odds_read_the_number_of_images():
    scores, activations = random_case(150, 20, 8, 0.05, seed=9)
    for top_k in (1, 7, 100):
        score = math.log(8) - torch.nn.functional.softplus(-soft_wpmi_odds(scores, activations, top_k))
        np.testing.assert_allclose(score.numpy(), naive_soft_wpmi(scores, activations, top_k), atol=1e-3)

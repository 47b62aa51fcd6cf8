"""The scoring functions against their definitions written out, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronbench.describe.describe_and_dissect import scoring
from neuronbench.describe.describe_and_dissect.scoring import SCORINGS, candidate_scores, painted_ranks


def drawn(seed, candidates, images, missing, dim=6):
    """Distinct activations, some NaN, and embeddings; every candidate keeps at least one image."""
    rng = np.random.default_rng(seed)
    activations = rng.permutation(candidates * images).reshape(candidates, images) / 7 - 2
    holes = rng.random(activations.shape) < missing
    holes[:, 0] = False
    painted = rng.normal(size=(candidates, images, dim)) + 0.3
    return np.where(holes, np.nan, activations), painted, rng.normal(size=(5, dim)) + 0.3


def by_definition(activations, painted, exemplars, beta, t):
    """METHODS' formulas, one image at a time."""
    flat = sorted((value for value in activations.ravel() if not np.isnan(value)), reverse=True)
    found = {name: [] for name in SCORINGS}
    for row, images in zip(activations, painted):
        kept = sorted((flat.index(value) + 1, position) for position, value in enumerate(row) if not np.isnan(value))
        ranks = [rank for rank, _ in kept]
        found["mean"].append(-np.mean(ranks))
        found["topk_squared"].append(-np.mean([rank**2 for rank in ranks[:beta]]))
        cosines = [images[position] @ one / np.linalg.norm(images[position]) / np.linalg.norm(one)
                   for _, position in kept[:t] for one in exemplars]
        found["image_products"].append(np.mean(cosines))
    order = sorted(found["topk_squared"], reverse=True)
    found["topk_squared_image_products"] = [product * (len(order) - order.index(square))
                                            for product, square in zip(found["image_products"], found["topk_squared"])]
    return found


@given(seed=st.integers(0, 2**32), candidates=st.integers(1, 6), images=st.integers(1, 12), missing=st.sampled_from([0, 0.4]),
       beta=st.integers(1, 12), t=st.integers(1, 12))
def test_every_function_is_its_definition(seed, candidates, images, missing, beta, t):
    given = drawn(seed, candidates, images, missing)
    expected = by_definition(*given, beta, t)
    for name in SCORINGS:
        np.testing.assert_allclose(candidate_scores(name, *given, beta, t), expected[name], rtol=1e-9, atol=1e-12)


def test_defaults_are_the_papers():
    given = drawn(1, 4, 12, 0)
    expected = by_definition(*given, beta=5, t=10)
    np.testing.assert_allclose(scoring.topk_squared(given[0]), expected["topk_squared"])
    np.testing.assert_allclose(scoring.image_products(*given), expected["image_products"])
    np.testing.assert_allclose(scoring.topk_squared_image_products(*given), expected["topk_squared_image_products"])


@given(seed=st.integers(0, 2**32), scale=st.floats(0.01, 100))
def test_ranks_know_only_the_order(seed, scale):
    activations, painted, exemplars = drawn(seed, 4, 6, 0.2)
    for name in SCORINGS:
        np.testing.assert_allclose(candidate_scores(name, np.exp(scale * activations / 10), painted, exemplars),
                                   candidate_scores(name, activations, painted, exemplars))


def test_a_silent_unit_prefers_no_candidate():
    silent, same = np.zeros((4, 10)), np.ones((4, 10, 3))
    for name in SCORINGS:
        assert len(set(candidate_scores(name, silent, same, same[0]))) == 1


def test_missing_images_are_never_ranked_whatever_their_embedding():
    activations, painted, exemplars = drawn(2, 3, 5, 0)
    activations[2], painted[2] = np.nan, np.nan
    for name in SCORINGS:
        scores = candidate_scores(name, activations, painted, exemplars)
        assert np.isnan(scores[2])
        np.testing.assert_allclose(scores[:2], candidate_scores(name, activations[:2], painted[:2], exemplars))
    assert np.isnan(candidate_scores("mean", np.full((2, 3), np.nan), painted[:2, :3], exemplars)).all()


def test_no_candidates():
    for name in SCORINGS:
        assert candidate_scores(name, np.zeros((0, 10)), np.zeros((0, 10, 4)), np.ones((3, 4))).shape == (0,)


def test_a_function_of_ones_own_gets_what_it_names():
    given, seen = drawn(3, 3, 4, 0), {}

    def two(activations, beta):
        seen["two"] = activations.shape, beta
        return [3, 2, 1]

    def everything(activations, **rest):
        seen["everything"] = sorted(rest)
        return activations.max(1)

    assert candidate_scores(two, *given, beta=7).tolist() == [3, 2, 1]
    np.testing.assert_allclose(candidate_scores(everything, *given), given[0].max(1))
    assert seen == {"two": ((3, 4), 7), "everything": ["beta", "exemplars", "painted", "t"]}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda activations: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda activations: [1, np.nan, 2], r"returned \[ 1. nan  2.\]: expected finite"),
        (lambda activations: [1, 2], r"returned shape \(2,\): expected one score for each of 3 candidates"),
        (lambda activations: None, r"returned shape \(\)"),
        (lambda activations: ["good", "bad", "ugly"], "raised ValueError"),
        (lambda: [1, 2, 3], "raised TypeError"),
    ],
)
def test_what_a_function_of_ones_own_did_wrong_is_said(function, message):
    with pytest.raises(ValueError, match=f"the scoring function '<lambda>' {message}"):
        candidate_scores(function, *drawn(4, 3, 4, 0))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(KeyError, match="no scoring function 'topk'; did you mean 'topk_squared'"):
        candidate_scores("topk", *drawn(5, 2, 2, 0))
    with pytest.raises(ValueError, match=r"shape \(3,\): expected \(candidate, painted image\)"):
        painted_ranks([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="beta is 0"):
        scoring.topk_squared(np.ones((2, 2)), beta=0)
    with pytest.raises(ValueError, match="t is 0"):
        scoring.image_products(np.ones((2, 2)), np.ones((2, 2, 3)), np.ones((1, 3)), t=0)

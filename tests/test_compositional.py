"""Compositional explanations: the search against the same search on boolean masks and against all formulas, the bounds, and formulas read back."""

import itertools
import re
import tempfile

import numpy as np
import pytest
from given_maps import CATEGORIES, annotated_case, random_case, recorded, upsampled
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronbench.describe.compositional import JOINS, BitMask, CompositionalExplanations, Hits, Masks, Search, extensions
from neuronbench.describe.formulas import Formula, equivalent, parse_formula
from neuronbench.describe.network_dissection import NetworkDissection
from neuronbench.probe.annotations import Annotations, annotations_from_arrays
from neuronbench.probe.masks import ConceptMasks, packed

NAMES = [name for names in CATEGORIES.values() for name in names]
OF = np.repeat(np.arange(3), [3, 2, 2])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


# formulas

@st.composite
def formulas(draw):
    names = st.sampled_from(["a", "b (c)", "swivel chair", "e)", "red-c"])
    terms = draw(st.lists(st.tuples(st.sampled_from(["AND", "OR"]), names, st.booleans()), min_size=1, max_size=5))
    return Formula((("AND", *terms[0][1:]), *terms[1:]))


@given(formulas())
def test_a_printed_formula_is_read_back(formula):
    assert parse_formula(str(formula)) == formula


@given(formulas(), st.integers(0, 100))
def test_formulas_are_equivalent_exactly_if_no_assignment_differs(one, seed):
    names = sorted({name for _, name, _ in one.terms})
    rng = np.random.default_rng(seed)
    other = Formula((("AND", *one.terms[0][1:]), *(one.terms[number] for number in rng.permutation(np.arange(1, len(one.terms))))))
    rows = [dict(zip(names, map(np.bool_, values))) for values in itertools.product([False, True], repeat=len(names))]
    assert equivalent(one, other) == all(one.truth(row) == other.truth(row) for row in rows)
    assert equivalent(one, one)


@pytest.mark.parametrize("text", ["", "a AND (b OR c)", "(a OR b)", "a AND ", " OR b", "((a OR b) AND c", "a OR b AND c", "NOT "])
def test_texts_that_no_formula_prints_are_refused(text):
    with pytest.raises(ValueError, match="is no formula"):
        parse_formula(text)


def test_an_unknown_concept_names_the_nearest():
    assert parse_formula("boat AND NOT night", ["boat", "night"]).terms[1] == ("AND", "night", True)
    with pytest.raises(KeyError, match="did you mean 'night'"):
        parse_formula("boat AND NOT nihgt", ["boat", "night"])


# masks in bits

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_bit_masks_join_as_boolean_masks_do(seed):
    rng = np.random.default_rng(seed)
    dense = (rng.random((2, 9, 7, 11)) < 0.3) & (rng.random((2, 9, 1, 1)) < 0.6)
    one, other = (BitMask.of(np.arange(9), packed(of)) for of in dense)
    assert one.shared(other) == (dense[0] & dense[1]).sum()
    for join, expected in zip(JOINS, (dense[0] | dense[1], dense[0] & dense[1], dense[0] & ~dense[1])):
        joined = one.joined(join, other)
        assert np.array_equal(joined.at(np.arange(9)), packed(expected))
        assert np.array_equal(joined.counts, expected.sum((1, 2))[joined.images]) and (joined.counts > 0).all()


# the search

def masks_and_hits(labels, annotated, unit):
    """What one pass gathers, from labels (image, concept, H, W), annotated (image, category) and a unit's masks (image, H, W)."""
    masks, hits = Masks(NAMES, len(labels), labels[0, 0].size, tempfile.TemporaryFile()), Hits()
    for image, of_image in enumerate(labels):
        present = np.flatnonzero(of_image.any((1, 2)))
        found = ConceptMasks(annotated[image], present, of_image[present])
        masks.add(image, found)
        if unit[image].any():
            hits.add(unit[image], found)
    return masks, hits


def stacked_case(seed, images=10, partial=True):
    """(labels (image, concept, H, W), annotated (image, category), unit (image, H, W)); the unit follows two concepts, with noise."""
    _, masks, annotated = random_case(seed, images=images, partial=partial)
    labels, rng = np.concatenate(list(masks.values()), axis=1), np.random.default_rng(seed + 1)
    one, other = rng.integers(0, 7, 2)
    likes = [labels[:, one] | labels[:, other], labels[:, one] & ~labels[:, other], labels[:, one] & labels[:, other]][seed % 3]
    unit = (likes & (rng.random(likes.shape) < 0.7)) | (rng.random(likes.shape) < 0.03)
    return labels, np.stack(list(annotated.values()), axis=1), unit


def boolean_search(labels, unit, length, beam_size):
    """The same beam search, on boolean masks of all images, without bounds: [[(key, IoU)] best first] by length."""
    def scored(key, mask):
        return key, (unit & mask).sum() / max((unit | mask).sum(), 1), mask

    def distinct(candidates):
        beam = []
        for one in sorted(candidates, key=lambda candidate: -candidate[1]):
            same = any(np.array_equal(one[2], other[2]) for other in beam)
            if not same and one[1] > 0 and len(beam) < beam_size:
                beam.append(one)
        return beam

    beams = [distinct([scored((("", concept),), labels[:, concept]) for concept in range(7)])]
    while len(beams) < length:
        candidates = list(beams[-1])
        for key, _, mask in beams[-1]:
            for join, concept in itertools.product(JOINS, range(7)):
                other = labels[:, concept]
                joined = {"OR": mask | other, "AND": mask & other, "AND NOT": mask & ~other}[join]
                if (joined != mask).any() and concept not in [used for _, used in key]:
                    candidates.append(scored((*key, (join, concept)), joined))
        beams.append(distinct(candidates))
    return [[(key, iou) for key, iou, *_ in beam] for beam in beams]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 5))
def test_the_search_is_that_on_boolean_masks(seed, partial, beam_size):
    labels, annotated, unit = stacked_case(seed, partial=partial)
    masks, hits = masks_and_hits(labels, annotated, unit)
    found = Search(masks, hits, {}).beams(3, beam_size)
    assert [[(one.key, one.iou) for one in beam] for beam in found] == boolean_search(labels, unit, 3, beam_size)


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_finds_the_best_of_all_formulas(seed):
    labels, annotated, unit = stacked_case(seed, partial=False)
    masks, hits = masks_and_hits(labels, annotated, unit)
    best = 0
    for one, join, two, again, three in itertools.product(range(7), JOINS, range(7), JOINS, range(7)):
        terms = (("AND", one, False), *((name.split()[0], concept, name == "AND NOT") for name, concept in ((join, two), (again, three))))
        truth = Formula(terms).truth(dict(enumerate(labels.swapaxes(0, 1))))
        best = max(best, (unit & truth).sum() / (unit | truth).sum())
    assert Search(masks, hits, {}).beams(3, 1000)[-1][0].iou == best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_no_iou_exceeds_its_bound(seed):
    masks, hits = masks_and_hits(*stacked_case(seed))
    search = Search(masks, hits, {})
    for scored in search.beams(2, 4)[-1]:
        counts = extensions(scored, masks, search.at, search.unit)
        exact = np.array([scored.mask.shared(masks.concept(concept)) for concept in range(7)])
        assert (counts.least <= exact).all() and (exact <= counts.most).all()
        for join in JOINS:
            assert (counts.iou(join, exact) <= counts.bound(join)).all()
        assert (counts.least == counts.most)[OF == 2].all()  # labels of whole images need no counting


def test_most_extensions_are_never_counted():
    masks, hits = masks_and_hits(*stacked_case(4, images=30))
    search = Search(masks, hits, {})
    search.beams(3, 2)
    assert 0 < len(search.shared) < 2 * 2 * 5


# the method

@pytest.mark.parametrize("partial", [False, True])
def test_the_method_finds_what_the_boolean_search_finds(partial):
    recording, annotations, maps, masks, _ = annotated_case(8, images=70, partial=partial)
    found = CompositionalExplanations(annotations, share=0.1).explain(recording, recording.images)
    labels = np.concatenate(list(masks.values()), axis=1)
    for unit, threshold in enumerate(recording.quantile("table", 0.9)):
        active = np.stack([upsampled(one, (8, 12)) for one in maps[:, unit].astype("f4")]) > threshold
        expected = [beam[0] for beam in boolean_search(labels, active, 3, 5)]
        mine = found[found.unit == unit]
        assert np.allclose(mine.iou, [iou for _, iou in expected], atol=2e-3)
        assert mine.length.tolist() == [1, 2, 3] and mine.iou.is_monotonic_increasing
    single = NetworkDissection(annotations, share=0.1).explain(recording, recording.images)
    assert partial or np.allclose(single.iou, found[found.length == 1].iou)  # Network Dissection leaves images out of the union


def test_a_longer_formula_does_not_choose_the_images_it_is_judged_on():
    """A unit fires on cats. Scenes are annotated in 4 of 40 images, where it happens to fire on cats at sea only."""
    rng, few = np.random.default_rng(0), np.arange(40) < 4
    cat, sea = rng.random((40, 8, 12)) < 0.3, (rng.random((40, 8, 12)) < 0.6) & few[:, None, None]
    recording = recorded(np.where(few[:, None, None], cat & sea, cat)[:, None])
    annotations = annotations_from_arrays(recording.images, {"object": cat[:, None], "scene": sea[:, None]}, {"object": ["cat"], "scene": ["sea"]}, {"scene": few})
    found = CompositionalExplanations(annotations, share=0.4).explain(recording, recording.images)
    expected = (np.where(few[:, None, None], cat & sea, cat)).sum() / cat.sum()
    assert found.formula.tolist()[:1] == ["cat"] and np.isclose(found.iou[0], expected)
    every = CompositionalExplanations(annotations_from_arrays(recording.images, {"object": cat[:, None], "scene": sea[:, None]}, {"object": ["cat"], "scene": ["sea"]}), share=0.4)
    assert every.explain(recording, recording.images).drop(columns="layer").equals(found.drop(columns="layer"))  # annotated as empty is the same
    assert NetworkDissection(annotations, share=0.4).explain(recording, recording.images).iou[0] == found.iou[0]


def test_planted_formulas_are_found_and_the_shortest_wins():
    _, masks, _ = random_case(3, images=60, partial=False)
    named = dict(zip(NAMES, np.concatenate(list(masks.values()), axis=1).swapaxes(0, 1)))
    planted = ["red", "boat AND NOT sea", "(cat OR boat) AND room", "tree AND blue"]
    recording = recorded(np.stack([parse_formula(text).truth(named) for text in planted], axis=1))  # maps as large as the masks, 0 or 1
    annotations = annotations_from_arrays(recording.images, masks, CATEGORIES)
    found = CompositionalExplanations(annotations, share=0.7)(recording, recording.images)
    assert set(found.method) == {"Compositional Explanations"} and (found.score == 1).all()
    assert all(equivalent(parse_formula(mine, NAMES), parse_formula(text)) for mine, text in zip(found.description, planted))
    assert found.description[0] == "red"


def test_units_without_a_formula_have_a_reason():
    _, masks, _ = random_case(3, images=30, partial=False)
    for of in masks.values():
        of[:3] = False
    maps = np.zeros((30, 4, 8, 12))
    maps[:, 0], maps[:, 2], maps[:3, 3] = masks["object"][:, 0], np.nan, 1
    recording = recorded(maps)
    with pytest.warns(UserWarning, match="have no description"):
        found = CompositionalExplanations(annotations_from_arrays(recording.images, masks, CATEGORIES), share=0.7)(recording, recording.images)
    assert found.description.isna().tolist() == [False, True, True, True] and found.description[0] == "boat"
    assert [(one["unit"], one["step"], one["reason"]) for one in found.attrs["failures"]] == [
        (1, "search", "the unit never exceeds its threshold"), (2, "search", "the unit is NaN or infinite on some images"),
        (3, "search", "the unit is nowhere active on an annotated concept")]


@pytest.mark.parametrize("reverse", [False, True])
def test_concepts_that_are_the_same_everywhere_are_no_description(reverse):
    _, masks, _ = random_case(3, images=40, partial=False)
    masks["object"][:, 1] = masks["object"][:, 0]
    categories = {name: concepts[::-1] if reverse else concepts for name, concepts in CATEGORIES.items()}
    masks = {name: of[:, ::-1] if reverse else of for name, of in masks.items()}
    named = {name: of[:, place] for category, of in masks.items() for place, name in enumerate(categories[category])}
    recording = recorded(np.stack([named["boat"] & ~named["sea"], named["red"]], axis=1))
    method = CompositionalExplanations(annotations_from_arrays(recording.images, masks, categories), share=0.7)
    found = method(recording, recording.images)
    assert found.description.isna().tolist() == found.score.isna().tolist() == [True, False] and found.description[1] == "red"
    [failure] = found.attrs["failures"]
    assert {"boat AND NOT sea", "cat AND NOT sea"} == set(re.findall("'([^']*)'", failure["reason"]))
    assert method.explain(recording, recording.images).query("unit == 0 and length == 3").iou.tolist() == [1]  # the number is right for both


def test_a_concept_without_a_pixel_is_in_no_formula():
    recording, _, maps, masks, annotated = annotated_case(6)
    masks["object"][:, 1] = False
    annotations = annotations_from_arrays(recording.images, masks, CATEGORIES, annotated)
    method = CompositionalExplanations(annotations, share=0.1)
    assert not method.explain(recording, recording.images).formula.str.contains("cat").any()


def test_beams_hold_what_the_best_beat():
    recording, annotations, *_ = annotated_case(9)
    method = CompositionalExplanations(annotations, share=0.1, beam_size=3)
    beams = method.trace(recording, "table", 1).beams
    assert (beams.groupby("length").size() == 3).all() and beams.groupby("length").iou.apply(lambda of: of.is_monotonic_decreasing).all()
    assert (beams.groupby("length").formula.nunique() == 3).all()
    best = method.explain(recording, recording.images, {"table": [1]})
    assert best.formula.tolist() == beams[beams["rank"] == 0].formula.tolist()


def test_bad_settings_and_names_are_refused():
    recording, annotations, *_ = annotated_case(1)
    with pytest.raises(ValueError, match="give one of them"):
        CompositionalExplanations()
    for wrong in ({"length": 0}, {"beam_size": 0}, {"share": 1}):
        with pytest.raises(ValueError, match="expected length and beam_size of at least 1 and 0 < share < 1"):
            CompositionalExplanations(annotations, **wrong)
    for name in ("sand OR gravel", "NOT a boat", "(a"):
        with pytest.raises(ValueError, match="would be read as a formula"):
            CompositionalExplanations(Annotations(recording.images, dict, {"object": ["boat", name]}))
    fewer, other, *_ = annotated_case(1, images=30)
    with pytest.raises(ValueError, match="annotations are of 30 images, the recording of 40"):
        CompositionalExplanations(other)(recording, recording.images)

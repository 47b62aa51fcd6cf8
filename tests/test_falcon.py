"""FALCON: each step against a direct loop, corpora of any kind, units without words, and hostile text."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import neuronbench as nb
from neuronbench.describe import falcon
from neuronbench.describe.falcon import FALCON, CaptionCorpus, best_captions, caption_words, counterfactual_images, salient_box, word_scores
from neuronbench.probe.target import Target
from tiny_colours import COLOURS, ColourCLIP, One

CAPTIONS = [f"a photo of {size} {colour} {thing}" for colour in COLOURS for size in ("big", "tiny") for thing in ("houses", "dogs", "trees")]
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Mixed(torch.nn.Module):
    """Unit 0 likes red, 1 likes what is not blue, 2 is always the same, 3 is bright everywhere, 4 is NaN where it is green; `flat` has no maps."""

    def __init__(self):
        super().__init__()
        self.maps, self.flat = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, batch):
        red, green, blue = batch.unbind(1)
        broken = torch.where(green.mean((1, 2)) > 0.2, torch.nan, 1.0)[:, None, None].expand_as(red)
        maps = torch.stack([red * (1 - green) * (1 - blue), 1 - blue, torch.full_like(red, 0.1), red + green + blue + 1, broken], 1)
        return self.flat(self.maps(maps).mean((2, 3)))


def preprocess(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


def square(colour, left):
    """A square of a colour on a dark ground."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, left : left + 16] = colour
    return Image.fromarray(pixels)


def recorded(layers=("maps", "flat"), images=None):
    images = images or [square(colour, left) for left in range(0, 16, 2) for colour in COLOURS.values()]
    return nb.record(Target(Mixed(), layers, preprocess, device="cpu"), nb.ProbingSet.from_images(images), progress=False)


@pytest.fixture
def recording():
    return recorded()


def described(recording, units, captions=CAPTIONS, **settings):
    return FALCON(ColourCLIP(), captions, **{"resemblance": 0.0, **settings})(recording, recording.images, {"maps": units})


# the corpus

def test_a_file_and_a_list_are_the_same_corpus(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\ufeff" + "\n\n".join(CAPTIONS) + "\n  \n", encoding="utf-8")
    file, plain = CaptionCorpus(path), CaptionCorpus(["", *CAPTIONS, " "])
    assert list(file) == list(plain) == CAPTIONS and file.fingerprint == plain.fingerprint
    assert file.at([0, 17, 99]) == plain.at([17, 0]) == {0: CAPTIONS[0], 17: CAPTIONS[17]}
    path.write_text("another")
    assert file.fingerprint != plain.fingerprint


@pytest.mark.parametrize("source, error, sentence", [
    ([], ValueError, "an empty caption corpus: no line of the list has text"),
    (["", "  "], ValueError, "an empty caption corpus"),
    (None, TypeError, "a text file or a list of captions, not None"),
    (["a cat", 7], TypeError, "entry 1 of the list is 7 \\(int\\)"),
    ("a red cat", FileNotFoundError, "a single caption is given as a list"),
])
def test_what_is_no_corpus(source, error, sentence):
    with pytest.raises(error, match=sentence):
        FALCON(ColourCLIP(), source)


def test_empty_and_broken_files(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty caption corpus: no line of the file"):
        CaptionCorpus(path)
    path.write_bytes(b"a red cat\n\xff\xfe broken\n\na dog")
    assert list(CaptionCorpus(path))[::2] == ["a red cat", "a dog"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 7), st.integers(0, 10**6))
def test_best_captions_are_those_of_one_big_matrix_in_blocks_of_bounded_size(captions, count, seed):
    chance = np.random.default_rng(seed)
    images, texts = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in
                     (chance.normal(size=(3, 8)).astype("f4"), chance.normal(size=(captions, 8)).astype("f4")))

    class Table(ColourCLIP):
        def embed_texts(self, block, progress=True):
            self.blocks.append(len(block))
            return texts[[int(text) for text in block]]

    clip = Table()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(falcon.np, "clip", lambda *limits: 256)
        found = best_captions(images, CaptionCorpus(map(str, range(captions))), clip, count)
    order = np.argsort(-(images @ texts.T), axis=1, kind="stable")[:, :count]
    assert np.array_equal(found["positions"], order) and max(clip.blocks) <= 256 and sum(clip.blocks) == captions
    shares = scipy.special.softmax(100 * (images @ texts.T).astype(np.float64), axis=1)  # as `caption_images` of the published code
    assert np.allclose(found["similarities"], np.take_along_axis(shares, order, 1), rtol=1e-4, atol=1e-9)


def test_what_a_counterfactual_must_score_is_on_the_scale_of_the_published_code():
    cosines = {"a boat on water": [0.30] * 10, "a boat": [0.29] * 10, "a ship on water": [0.28] * 10, "a ship": [0.27] * 10,
               "a dog": [0.26] * 4 + [0] * 6, "a sail": [0] * 4 + [0.26] * 6}  # of each caption and ten images, such as CLIP gives
    table = np.array(list(cosines.values()))

    class Table(ColourCLIP):
        def embed_texts(self, texts, progress=True):
            return np.hstack([table, np.diag(np.sqrt(1 - (table**2).sum(1)))]).astype("f4")

    found = best_captions(np.eye(10, 16, dtype="f4"), CaptionCorpus(list(cosines)), Table(), 5)
    rows = [(image, list(cosines)[place], similarity) for image in range(10) for place, similarity in zip(found["positions"][image], found["similarities"][image])]
    scores, shares = word_scores(pd.DataFrame(rows, columns=["image", "caption", "similarity"])), np.exp(100 * table[:, 0])
    assert scores["dog"] == pytest.approx(0.4 * shares[4] / shares.sum(), rel=1e-3) and scores["dog"] < FALCON.removed_from < scores["boat"]


# words

@pytest.mark.parametrize("caption, words", [
    ("Two dogs are running through wet grass", {"dog": "noun", "run": "verb", "wet": "adjective", "grass": "noun"}),
    ("a close-up photo of the BOATS", {"boat": "noun"}),
    ("it was there, and they would have been with us of 1234 !!!", {}),
    ("", {}),
    ("\u732b \U0001f408 \x00", {}),
])
def test_words_of_captions(caption, words):
    assert caption_words(caption) == words


def test_stop_words_and_photo_words_are_dropped():
    stop = ("a an the and or but if while of at by for with about against between into through during before after above below to from up down in out on off over "
            "under again i me my we our you your he him his she her it its they them their what which who whom this that these those am is are was were be been "
            "being have has had having do does did doing will would should can could may might must not nor no").split()
    kept = {word: caption_words(f"the dog {word} tree") for word in stop}
    assert {word for word, found in kept.items() if set(found) - {"dog", "tree"}} == set()
    assert not any(caption_words(word) for word in ("photo", "photographs", "image", "pictures", "background", "wallpaper", "jpg"))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_plain_words_or_none(text):
    for word, part in caption_words(text).items():
        assert part in ("noun", "verb", "adjective") and len(word) > 2 and word == word.lower() and not set(word) & set("<>&\"'$0123456789 ")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(CAPTIONS), st.floats(0, 1)), max_size=20))
def test_scores_are_those_of_a_direct_loop(rows):
    captions = pd.DataFrame(rows, columns=["image", "caption", "similarity"])
    images = {image for image, _, _ in rows}
    expected = {}
    for word in {word for _, caption, _ in rows for word in caption_words(caption)}:
        best = {image: max((value for one, caption, value in rows if one == image and word in caption_words(caption)), default=0) for image in images}
        expected[word] = sum(best.values()) / len(images)
    found = word_scores(captions)
    assert found.to_dict() == pytest.approx(expected) and (np.diff(found) <= 0).all()


# counterfactuals

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(-1, 1))
def test_counterfactuals_are_those_of_a_direct_loop(seed, units, least):
    chance = np.random.default_rng(seed)
    activations = np.maximum(chance.normal(size=(30, units)), 0 if seed % 2 else -9).astype("f4")
    chosen = np.argsort(-activations[:, 1])[:4]
    rows, cosines = counterfactual_images(activations, 1, chosen, 5, least)
    unit = lambda vector: vector / np.linalg.norm(vector) if np.linalg.norm(vector) > 0 else vector
    others = [unit(np.delete(row, 1).astype(np.float64)) for row in activations]
    direction = unit(np.mean([others[row] for row in chosen], 0))
    expected = {row: others[row] @ direction for row in range(30) if activations[row, 1] < activations[:, 1].mean(dtype=np.float64)}
    assert all(row in expected and cosine == pytest.approx(expected[row], abs=1e-5) for row, cosine in zip(rows, cosines))
    assert (cosines >= least).all() and (np.diff(cosines) <= 1e-12).all()
    missed = [cosine for row, cosine in expected.items() if row not in rows and cosine > least + 1e-5]
    assert len(rows) == 5 or not missed
    assert not missed or max(missed) <= cosines.min() + 1e-5


def test_no_other_unit_resembles_nothing():
    rows, _ = counterfactual_images(np.arange(6.0, dtype="f4")[:, None], 0, np.array([5, 4]))
    assert len(rows) == 0


# crops

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.6, 0.9]))
def test_the_box_holds_the_peak_region_and_nothing_else_matters(seed, share):
    chance = np.random.default_rng(seed)
    values = chance.normal(size=(7, 7)) + chance.uniform(-1, 2)
    left, top, right, bottom = salient_box(values, (70, 70), share)
    assert 0 <= left < right <= 70 and 0 <= top < bottom <= 70
    if values.max() <= 0 or values.min() >= share * values.max():
        assert (left, top, right, bottom) == (0, 0, 70, 70)


@pytest.mark.parametrize("low", [0.0, 0.2, -3.0])
def test_the_threshold_is_a_share_of_the_maximum_and_the_largest_box_wins(low):
    values = np.full((32, 32), low)
    values[2:4, 2:4], values[10:20, 12:28], values[25:30, 5:20] = 1.0, 0.7, 0.5
    assert salient_box(values, (32, 32), 0.6) == (12, 10, 28, 20)
    assert salient_box(values, (32, 32), 0.9) == (2, 2, 4, 4)


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), -1.0), np.full((4, 4), 2.0), np.array([[0.9, 1.0]])])
def test_without_a_salient_part_it_is_the_whole_image(values):
    assert salient_box(values, (20, 10)) == (0, 0, 20, 10)


# the method

def test_words_of_the_exemplars_without_those_of_the_counterfactuals(recording):
    found = described(recording, [0])
    assert list(found.columns) == ["layer", "unit", "description", "score", "method"] and set(found.method) == {"FALCON"}
    assert found.description.tolist() == ["red"] and found.attrs["failures"] == []
    trace = FALCON(ColourCLIP(), CAPTIONS, resemblance=0.0).trace(recording, "maps", 0)
    removed = trace.words[trace.words.removed]
    assert {"big", "house", "dog"} <= set(removed.word) and (removed.counterfactual >= 0.1).all()
    assert set(trace.counterfactuals.image) <= {image for image in range(24) if image % 3} and len(trace.counterfactuals) == 10
    assert all("red" in caption for caption in trace.captions.caption) and trace.captions.groupby("image").size().eq(5).all()
    assert len(trace.crops) == len(trace.exemplars) == 8  # the ninth and tenth are not above the mean
    assert all(np.asarray(crop)[..., 0].mean() > 200 for crop in trace.crops) and trace.plot().axes


def test_without_counterfactuals_every_word_stays_and_labels_limits_them(recording):
    many = described(recording, [0], counterfactuals=0)
    assert {"red", "big", "house", "dog"} <= set(many.description) and len(many) <= 8
    assert (np.diff(many.score) <= 0).all()
    assert described(recording, [0], counterfactuals=0, labels=2).description.tolist() == many.description[:2].tolist()


def test_units_without_words_have_a_reason_and_the_run_goes_on(recording):
    with pytest.warns(UserWarning, match="2 units have no description"):
        found = described(recording, [2, 0, 4])
    assert found.unit.tolist() == [2, 0, 4] and found.description.isna().tolist() == [True, False, True] and np.isnan(found.score[0])
    same, broken = found.attrs["failures"]
    assert same == {"layer": "maps", "unit": 2, "step": "exemplars", "reason": "the unit is 0.1 on every image, so that no image stands out", "method": "FALCON"}
    assert broken["unit"] == 4 and broken["reason"] == "the unit is NaN or infinite on some images"
    assert FALCON(ColourCLIP(), CAPTIONS).trace(recording, "maps", 4).plot().axes


@pytest.mark.parametrize("network, count, reason", [(One, 24, "only unit of its layer"), (Mixed, 1, "only one image")])
def test_a_single_unit_and_a_single_image_have_no_words(network, count, reason):
    images = nb.ProbingSet.from_images([square(colour, left) for left in range(0, 16, 2) for colour in COLOURS.values()][:count])
    alone = nb.record(Target(network(), ["maps"], preprocess, device="cpu"), images, progress=False)
    with pytest.warns(UserWarning, match=reason):
        found = described(alone, [0])
    assert found.description.isna().all() and found.attrs["failures"][0]["step"] == "exemplars"


def test_ranks_means_and_resemblance_are_of_the_pooling_asked_for():
    images = [square(colour, left) for left in range(0, 16, 2) for colour in COLOURS.values()]
    images[3] = Image.fromarray(np.full((32, 32, 3), (60, 0, 0), np.uint8))  # a little red everywhere: the largest mean but one, the smallest maximum
    both = nb.record(Target(Mixed(), ["maps"], preprocess, device="cpu"), nb.ProbingSet.from_images(images), pool=("mean", "max"), progress=False)
    for pool in (None, "mean", "max"):
        trace = FALCON(ColourCLIP(), CAPTIONS, resemblance=0.0, pool=pool, exemplars=8).trace(both, "maps", 0)
        values = both.pooled("maps", pool)
        best = both.top("maps", 0, 8, pool)
        above = best[best.activation > float(values[:, 0].mean())]
        assert trace.exemplars.image.tolist() == above.image.tolist() and np.allclose(trace.exemplars.activation, above.activation)
        assert np.allclose(trace.counterfactuals.activation, values[:, 0].sel(image=trace.counterfactuals.image.values))
        rows, _ = counterfactual_images(values.values[:, :4], 0, above.image.values, 10, 0.0)
        assert trace.counterfactuals.image.tolist() == rows.tolist()
    with pytest.raises(KeyError, match="no recorded pooling 'clas'|'class'"):
        FALCON(ColourCLIP(), CAPTIONS, pool="class").trace(both, "maps", 0)


def test_captions_without_words(recording):
    found = described(recording, [0], ["of the", "1 2 3", "\u732b"])
    assert found.description.isna().all() and "noun, verb or adjective" in found.attrs["failures"][0]["reason"]
    assert found.attrs["failures"][0]["step"] == "words"


def test_counterfactuals_that_share_every_word(recording):
    found = described(recording, [0], ["houses", "a house"])
    assert found.description.isna().all() and found.attrs["failures"][0]["reason"] == "its counterfactuals share every word of its exemplars"


def test_a_layer_without_maps_and_whole_images(recording):
    method = FALCON(ColourCLIP(), CAPTIONS, resemblance=0.0)
    trace = method.trace(recording, "flat", 0)
    assert trace.maps is None and trace.description == "red" and trace.crops[0].size == (32, 32)
    whole = FALCON(ColourCLIP(), CAPTIONS, resemblance=0.0, crop=None)
    assert np.array_equal(np.asarray(whole.trace(recording, "maps", 0).crops[0]), np.asarray(recording.images[int(trace.exemplars.image[0])]))


def test_hostile_captions_stay_text(recording):
    hostile = [f"{HOSTILE} red $x_1$ {{0}} %s boats", f"green {HOSTILE}", f"blue {HOSTILE}"]
    method = FALCON(ColourCLIP(), hostile, captions_per_image=1, resemblance=0.0)
    trace = method.trace(recording, "maps", 0)
    assert set(trace.captions.caption) == {hostile[0]} and "boat" in {label.text for label in trace.labels}
    assert not any(set(word) & set("<>()\"$") for word in trace.words.word)
    figure = trace.plot()
    figure.canvas.draw()
    assert any(HOSTILE[:8] in axis.get_title() for axis in figure.findobj(lambda artist: hasattr(artist, "get_title") and hasattr(artist, "imshow")))


def test_a_corpus_is_searched_once_for_all_units_and_kept(recording):
    method = FALCON(ColourCLIP(), CAPTIONS, resemblance=0.0)
    first = method(recording, recording.images, {"maps": [0, 1, 3]})
    assert method.clip.blocks == [len(CAPTIONS)]
    again = method(recording, recording.images, {"maps": [0, 1, 3]})
    assert first.equals(again) and method.clip.blocks == [len(CAPTIONS)]
    alone = method(recording, recording.images, {"maps": [1]})
    assert alone.description.tolist() == first[first.unit == 1].description.tolist()


def test_bad_images_do_not_shift_positions(tmp_path):
    for number, colour in enumerate([*COLOURS.values()] * 5):
        square(colour, number).save(tmp_path / f"{number:02}.png")
    (tmp_path / "01.png").write_bytes(b"no image")
    found = nb.record(Target(Mixed(), ["maps"], preprocess, device="cpu"), nb.ProbingSet.from_folder(tmp_path), progress=False)
    trace = FALCON(ColourCLIP(), CAPTIONS, resemblance=0.0).trace(found, "maps", 0)
    assert trace.description == "red" and set(trace.exemplars.image) == {0, 3, 6, 9, 12}
    assert not set(trace.counterfactuals.image) & {0, 1, 3, 6, 9, 12}
    assert np.allclose(trace.counterfactuals.activation, 0)


def test_a_changed_setting_keeps_the_corpus():
    method = FALCON(ColourCLIP(), CaptionCorpus(CAPTIONS))
    assert replace(method, crop=None).captions is method.captions and list(method.captions) == CAPTIONS


@pytest.mark.parametrize("settings, sentence", [
    ({"exemplars": 0}, "exemplars is 0: expected at least 1"),
    ({"labels": 0}, "labels is 0"),
    ({"counterfactuals": -1}, "counterfactuals is -1"),
    ({"crop": 1.0}, "crop is 1.0: expected a share"),
])
def test_settings_out_of_range(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        FALCON(ColourCLIP(), CAPTIONS, **settings)


def test_layers_units_and_images_are_checked(recording):
    method = FALCON(ColourCLIP(), CAPTIONS)
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        method(recording, recording.images, {"map": [0]})
    with pytest.raises(ValueError, match="there is no unit 5"):
        method(recording, recording.images, {"maps": [5]})
    with pytest.raises(ValueError, match="are not the 24 images of the recording"):
        method(recording, nb.ProbingSet.from_images([square((9, 9, 9), 0)]))

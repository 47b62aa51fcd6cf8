"""A gallery in place of a painter: what is nearest, what is never shown, what is refused, and what is said."""
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_describe_and_dissect import COLOURS, Captioner, Chat, recorded

import neuronbench as nb
from neuronbench.describe.describe_and_dissect.selection import Studio, paint_each
from neuronbench.describe.method import check_needs
from neuronbench.embedded.drawing.rendering import Scenes
from neuronbench.foundation import gallery as module
from neuronbench.foundation.gallery import Gallery, same_picture, small_form
from neuronbench.foundation.interfaces import TooFewImages, asked_for, kept_apart, stand_ins
from neuronbench.probe.activations import LayerActivations
from neuronbench.widgets.prompts_tuner import PromptsTuner
from neuronbench.widgets.scoring_tuner import painted_message


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def picture(number, size=(48, 32)):
    """A picture that no other number gives: random colours that run into each other."""
    colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def saved(image, form="JPEG", **options):
    """The picture after it was saved and opened again."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image.open(file)


class Space:
    """Vectors that are given: {phrase: vector}, and (image, dim) by the number that drew a picture."""

    device = torch.device("cpu")

    def __init__(self, texts, images):
        self.texts, self.images, self.looks = texts, np.asarray(images, np.float32), []

    @property
    def fingerprint(self):
        return f"space {self.texts} {self.images.tolist()}"

    def embed_texts(self, texts, *, progress=True):
        return np.array([self.texts[text] for text in texts], np.float32)

    def embed_images(self, images, indices=None, *, progress=True):
        indices = list(range(len(images)) if indices is None else indices)
        self.looks += indices
        for index in indices:
            images[index]
        return self.images[indices]


def pictures(count):
    return nb.ProbingSet.from_images([picture(number) for number in range(count)])


def numbers(paintings, count=60):
    """Which of `picture(number)` each painting is."""
    known = {picture(number).tobytes(): number for number in range(count)}
    return [[known[image.tobytes()] for image in row] for row in paintings]


def on_a_line(count, **texts):
    """A space in which the number of an image is its cosine to "high", and less its cosine to "low"."""
    steps = np.linspace(0, 1, count)
    return Space({"high": [1, 0], "low": [-1, 0]} | texts, np.stack([steps, np.sqrt(1 - steps**2)], 1))


def told(call):
    """The warnings of a call, as texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


# --- what is shown


def test_the_nearest_are_shown_nearest_first_and_each_once():
    gallery = Gallery(pictures(30), on_a_line(30))
    assert numbers(gallery.paint(["high", "low", "high"], 4)) == [[29, 28, 27, 26], [0, 1, 2, 3], [29, 28, 27, 26]]
    table = gallery.nearest(["low"], 3)
    assert table.image.tolist() == [0, 1, 2] and np.allclose(table.cosine, [0, -1 / 29, -2 / 29], atol=1e-6) and set(table.phrase) == {"low"}


def test_of_equally_near_ones_the_first_come_first():
    space = Space({"any": [1.0]}, [[0.5]] * 20 + [[0.9]] + [[0.5]] * 20)
    assert numbers(Gallery(pictures(41), space).paint(["any"], 4)) == [[20, 0, 1, 2]]


def test_what_is_shown_depends_on_neither_chunks_nor_other_phrases(monkeypatch, tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 5)).round(1)
    texts = {name: rng.normal(size=5) for name in "abcdefg"}
    together = numbers(Gallery(pictures(60), Space(texts, vectors)).paint([*texts], 10))
    monkeypatch.setattr(module, "_CHUNK", 7)
    monkeypatch.setattr(module, "_PIECE", 3)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "other"))
    alone = Gallery(pictures(60), Space(texts, vectors))
    assert [numbers(alone.paint([name], 10))[0] for name in texts] == together
    exact = np.argsort(-(np.array([*texts.values()]) @ vectors.T).round(6), axis=1, kind="stable")[:, :10]
    assert together == exact.tolist()


def test_a_picture_that_is_there_twice_counts_once():
    images = [picture(number) for number in range(30)]
    images[28] = saved(images[29].resize((96, 64)), quality=60)
    images[27] = images[29]
    chosen = Gallery(nb.ProbingSet.from_images(images), on_a_line(30)).nearest(["high"], 3)
    assert chosen.image.tolist() == [29, 26, 25]


def test_large_photographs_are_made_as_small_as_painted_ones():
    images = nb.ProbingSet.from_images([picture(0, (3000, 1500)), picture(1, (100, 50))])
    [shown] = Gallery(images, on_a_line(2)).paint(["low"], 2)
    assert [image.size for image in shown] == [(1024, 512), (100, 50)] and {image.mode for image in shown} == {"RGB"}


def test_nothing_asked():
    gallery = Gallery(pictures(12), on_a_line(12))
    assert gallery.paint([]) == [] and gallery.paint(["high", "low"], 0) == [[], []] and len(gallery.nearest([], 3)) == 0
    with pytest.raises(TypeError, match=r"not one str: give \['high'\]"):
        gallery.paint("high")


# --- vectors are kept


def test_vectors_are_made_once_and_anew_for_other_images_or_another_space():
    space = on_a_line(20)
    Gallery(pictures(20), space).paint(["high"], 3)
    assert sorted(space.looks) == list(range(20))
    Gallery(pictures(20), space).paint(["low"], 5)
    assert len(space.looks) == 20
    Gallery(pictures(19), space).paint(["high"], 3)
    assert len(space.looks) == 39
    other = on_a_line(20, more=[0, 1])
    Gallery(pictures(20), other).paint(["high"], 3)
    assert len(other.looks) == 20


def test_what_was_embedded_before_a_stop_is_kept(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 8)
    monkeypatch.setattr(module, "_PIECE", 4)
    space, embed = on_a_line(30), Space.embed_images

    def stops(self, images, indices=None, **options):
        if 20 in indices:
            raise KeyboardInterrupt
        return embed(self, images, indices, **options)

    monkeypatch.setattr(Space, "embed_images", stops)
    with pytest.raises(KeyboardInterrupt):
        Gallery(pictures(30), space).paint(["high"], 3)
    assert space.looks == list(range(20))
    monkeypatch.setattr(Space, "embed_images", embed)
    space.looks.clear()
    assert numbers(Gallery(pictures(30), space).paint(["high"], 3)) == [[29, 28, 27]]
    assert space.looks == list(range(16, 30))


def test_a_damaged_file_is_made_anew(tmp_path):
    gallery = Gallery(pictures(20), on_a_line(20))
    before = numbers(gallery.paint(["high"], 3))
    [file] = (tmp_path / "cache" / "gallery").glob("*/0")
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    again = on_a_line(20)
    assert numbers(Gallery(pictures(20), again).paint(["high"], 3)) == before and len(again.looks) == 20


# --- the same picture


@pytest.mark.parametrize("changed", [
    lambda image: image.resize((64, 48)), lambda image: image.resize((224, 224)), lambda image: saved(image, quality=50), lambda image: saved(image, "PNG"),
    lambda image: saved(image.resize((120, 80), Image.Resampling.BILINEAR), quality=70), lambda image: image.crop((48, 0, 240, 192)),
    lambda image: saved(image.crop((48, 0, 240, 192)).resize((96, 96)), quality=80), lambda image: image.convert("RGBA"),
], ids=["size", "aspect", "quality", "format", "size and quality", "middle square", "middle square saved anew", "mode"])
def test_a_picture_is_known_at_another_size_and_in_another_file(changed):
    image = picture(3, (288, 192))
    assert same_picture(small_form(changed(image))[None], small_form(image)).all()


@pytest.mark.parametrize("changed", [lambda image: picture(4, (288, 192)), lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
                                     lambda image: image.convert("L"), lambda image: image.crop((0, 0, 200, 130))], ids=["another", "mirrored", "grey", "a part"])
def test_another_picture_is_not_the_same(changed):
    image = picture(3, (288, 192))
    assert not same_picture(small_form(changed(image))[None], small_form(image)).any()


def test_two_views_of_one_plain_surface_are_two_pictures():
    rng = np.random.default_rng(0)
    views = [Image.fromarray((110 + rng.normal(0, 4, (16, 16, 1)) + np.zeros(3)).astype(np.uint8)).resize((128, 128), Image.Resampling.BICUBIC) for _ in range(20)]
    forms = np.stack([small_form(view) for view in views])
    assert [same_picture(forms, small_form(saved(view, quality=60))).sum() for view in views] == [1] * 20
    plain = [small_form(Image.new("RGB", (40, 40), (grey, grey, grey))) for grey in (100, 101, 104)]
    assert same_picture(np.stack(plain), plain[0]).tolist() == [True, True, False]


def test_two_scenes_of_the_world_are_never_the_same():
    forms = np.stack([small_form(image) for image in Scenes.random(60, 7)])
    assert [same_picture(forms, form).sum() for form in forms] == [1] * 60


def test_one_among_very_many_is_found():
    forms = np.random.default_rng(0).integers(0, 256, (3000, 2, 768), dtype=np.uint8)
    near = forms[1234].astype(int) + np.random.default_rng(1).integers(-5, 6, (2, 768))
    assert module._Forms(forms).has(near.clip(0, 255).astype(np.uint8))
    assert not module._Forms(np.delete(forms, 1234, 0)).has(near.clip(0, 255).astype(np.uint8))


# --- never the probing set


@pytest.mark.parametrize("changed", [lambda image: image, lambda image: saved(image.resize((90, 60)), quality=70)], ids=["itself", "saved smaller"])
def test_images_of_the_probing_set_are_passed_over_and_that_is_said_once(changed):
    probing = nb.ProbingSet.from_images([changed(picture(number, (288, 192))) for number in (29, 27, 3, 50)])
    gallery = Gallery(nb.ProbingSet.from_images([picture(number, (288, 192)) for number in range(30)]), on_a_line(30))
    apart = gallery.without(probing)
    said = told(lambda: (apart.paint(["high", "low"], 4), gallery.without(probing).paint(["high"], 4)))
    assert apart.nearest(["high", "low"], 4).image.tolist() == [28, 26, 25, 24, 0, 1, 2, 4]
    assert said == ["3 of the 11 images of the gallery that were looked at show what the probing set shows: they are passed over"]
    assert gallery.nearest(["high"], 2).image.tolist() == [29, 28]


def test_the_ranking_is_searched_as_deep_as_needed():
    probing = nb.ProbingSet.from_images([picture(number) for number in range(8, 60)])
    with pytest.warns(UserWarning, match="52 of the 57"):
        assert Gallery(pictures(60), on_a_line(60)).without(probing).nearest(["high"], 5).image.tolist() == [7, 6, 5, 4, 3]


def test_an_unreadable_image_of_the_probing_set_forbids_nothing(tmp_path):
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    gallery = Gallery(pictures(20), on_a_line(20)).without(nb.ProbingSet.from_folder(tmp_path))
    with pytest.warns(UserWarning, match="1 of the 4 images"):
        assert gallery.nearest(["low"], 3).image.tolist() == [0, 2, 3]


def test_several_sets_can_be_kept_apart_and_shape_the_fingerprint():
    gallery = Gallery(pictures(30), on_a_line(30))
    one, other = (nb.ProbingSet.from_images([picture(number)]) for number in (29, 28))
    both = gallery.without(one).without(other)
    with pytest.warns(UserWarning, match="passed over"):
        assert both.nearest(["high"], 1).image.tolist() == [27]
    assert both.fingerprint == gallery.without(other).without(one).without(one).fingerprint
    assert len({each.fingerprint for each in (gallery, gallery.without(one), gallery.without(other), both)}) == 4
    assert gallery.fingerprint == Gallery(pictures(30), on_a_line(30)).fingerprint != Gallery(pictures(30), on_a_line(30, more=[0, 1])).fingerprint


def test_a_file_that_changed_is_noticed_by_the_next_run(tmp_path):
    for number in range(12):
        picture(number).save(tmp_path / f"{number:02}.png")
    space, probing = on_a_line(12), nb.ProbingSet.from_images([picture(40)])
    gallery = Gallery(nb.ProbingSet.from_folder(tmp_path), space)
    before = gallery.without(probing).fingerprint
    picture(20).save(tmp_path / "00.png")
    assert gallery.without(probing).fingerprint != before
    assert numbers(gallery.without(probing).paint(["low"], 2)) == [[20, 1]]


# --- what is refused


def test_a_gallery_smaller_than_asked_is_refused_before_anything_is_opened():
    space = on_a_line(9)
    with pytest.raises(TooFewImages, match="^the gallery has 9 images, and 10 are asked for each phrase: give other photographs, some hundreds at least$"):
        Gallery(pictures(9), space).paint(["high"], 10)
    assert space.looks == []


def test_the_probing_set_itself_is_refused_before_anything_is_opened():
    space, images = on_a_line(30), pictures(30)
    with pytest.raises(TooFewImages, match="^the 30 images of the gallery are the probing set itself, and none of those may be shown: give other"):
        Gallery(images, space).without(pictures(30)).paint(["high"], 10)
    assert space.looks == []


def test_too_few_that_are_left_are_refused_with_the_reasons(tmp_path):
    for number in range(12):
        picture(number % 11).save(tmp_path / f"{number:02}.png")
    (tmp_path / "05.png").write_bytes(b"no picture")
    probing = nb.ProbingSet.from_images([picture(number) for number in (1, 2, 3)])
    gallery = Gallery(nb.ProbingSet.from_folder(tmp_path), on_a_line(12)).without(probing)
    said = r"7 of the 12 images of the gallery are left for 'high' \(3 are in the probing set, 1 cannot be read, 1 show the same as others\), and 8 are asked"
    with pytest.raises(TooFewImages, match=f"^{said} for each phrase: give other photographs, some hundreds at least$"):
        gallery.paint(["high"], 8)


@pytest.mark.parametrize("images", [[picture(0)], "photos/", Image.new("RGB", (4, 4)), None], ids=["list", "path", "picture", "None"])
def test_images_without_a_fingerprint_are_refused(images):
    for call in (lambda: Gallery(images, on_a_line(3)), lambda: Gallery(pictures(3), on_a_line(3)).without(images)):
        with pytest.raises(TypeError, match=r"expected a ProbingSet, such as nb\.ProbingSet\.from_folder\(\"photos/\"\), or nb\.ProbingSet\.from_images"):
            call()


def test_no_image_text_model_is_refused():
    with pytest.raises(TypeError, match=r"^space is 'ViT-B-16', which cannot embed_images\(\): expected a model such as nb\.CLIP"):
        Gallery(pictures(3), "ViT-B-16")


def test_two_spaces_are_refused():
    space = on_a_line(5)
    space.texts = {"high": [1, 0, 0]}
    with pytest.raises(ValueError, match=r"vectors of shape \(5, 2\) for 5 images and of 3 values for a text: expected one space"):
        Gallery(pictures(5), space).paint(["high"], 2)
    with pytest.raises(ValueError, match="not finite for 'odd'"):
        Gallery(pictures(5), on_a_line(5, odd=[np.nan, 1])).paint(["high", "odd"], 2)


def test_a_phrase_to_which_all_are_equally_near_is_refused_alone():
    gallery, problems = Gallery(pictures(20), on_a_line(20, flat=[0, 0])), {}
    with pytest.raises(ValueError, match=r"all 20 images of the gallery are equally near to 'flat' \(cosine 0\), so that any 4 of them would be as good: give a space"):
        gallery.paint(["flat"], 4)
    assert [len(row) for row in paint_each(gallery, ["high", "flat"], 4, problems)] == [4, 0]
    assert "equally near" in problems["flat"] and [*problems] == ["flat"]
    assert numbers(gallery.paint(["flat"], 20))[0] == list(range(20))  # all of them: nothing is chosen


def test_an_error_of_the_space_is_not_taken_for_an_unreadable_image(monkeypatch):
    def fails(self, images, indices=None, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Space, "embed_images", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        Gallery(pictures(5), on_a_line(5)).paint(["high"], 2)


# --- what is said


def test_unreadable_images_are_passed_over_counted_and_told_once(tmp_path):
    for number in range(20):
        picture(number).save(tmp_path / f"{number:02}.png")
    (tmp_path / "19.png").write_bytes(b"no picture")
    (tmp_path / "07.png").write_bytes(b"")
    gallery = Gallery(nb.ProbingSet.from_folder(tmp_path), on_a_line(20))
    said = told(lambda: [gallery.paint(["high"], 3) for _ in range(2)])
    assert said == ["2 of the 20 images of the gallery cannot be read and are passed over"]
    assert told(lambda: Gallery(nb.ProbingSet.from_folder(tmp_path), on_a_line(20)).paint(["low"], 3)) == said  # from the cache as well
    assert gallery.nearest(["high"], 3).image.tolist() == [18, 17, 16] and 7 not in set(gallery.nearest(["low"], 9).image)


def test_an_image_that_is_lost_later_is_passed_over(tmp_path):
    for number in range(12):
        picture(number).save(tmp_path / f"{number:02}.png")
    gallery = Gallery(nb.ProbingSet.from_folder(tmp_path), on_a_line(12))
    gallery.paint(["low"], 3)
    (tmp_path / "11.png").unlink()
    assert gallery.nearest(["high"], 2).image.tolist() == [10, 9]


def test_a_gallery_with_hardly_more_images_than_asked_is_told():
    said = told(lambda: Gallery(pictures(12), on_a_line(12)).paint(["high", "low"], 10))
    assert said == ["the gallery has 12 images, and 10 are asked for each phrase, so that any two phrases share at least 8: give other photographs, some hundreds at least"]


def test_photographs_all_of_one_class_are_told(tmp_path):
    for kind, count in (("boat", 12), ("cat", 0)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            picture(number).save(tmp_path / kind / f"{number}.png")
    gallery = Gallery(nb.ProbingSet.from_folder(tmp_path), on_a_line(12))
    said = told(lambda: [gallery.paint([phrase], 3) for phrase in ("high", "low")])
    assert said == ["all 12 images of the gallery are of the class 'boat': that is what it shows, whatever the phrase; give photographs of many kinds"]


def test_it_says_what_it_stands_in_for():
    gallery = Gallery(pictures(5), on_a_line(5))
    assert stand_ins([gallery.without(pictures(2))]) == [("gallery", "photographs of a gallery stand in for painted images")]
    assert repr(gallery.without(pictures(2))).endswith(", without 2 others)") and repr(gallery).startswith("Gallery(5 images, ")


# --- as a painter


class Speaker:
    """A painter of a user's, that keeps what it was asked."""

    fingerprint = "speaker"

    def __init__(self):
        self.asked = []

    def paint(self, prompts, count=10, *, progress=True):
        self.asked += prompts
        return [[picture(number, (128, 128)) for number in range(count)] for _ in prompts]


def test_a_gallery_is_asked_for_the_phrase_and_a_painter_is_told_the_prompt():
    gallery = Gallery(pictures(5), on_a_line(5))
    assert asked_for(gallery, "night", "photo of night") == "night" and asked_for(Speaker(), "night", "photo of night") == "photo of night"
    assert kept_apart(painter := Speaker(), pictures(5), 10) is painter


class Colours:
    """The mean colour of an image, and the colours that a text names."""

    fingerprint, device = "colours", torch.device("cpu")

    def embed_texts(self, texts, *, progress=True):
        return self.normalised([np.mean([[90, 100, 80], *(COLOURS[word] for word in text.split() if word in COLOURS)], 0) for text in texts])

    def embed_images(self, images, indices=None, *, progress=True):
        return self.normalised([np.asarray(images[index]).mean((0, 1)) for index in (range(len(images)) if indices is None else indices)])

    def normalised(self, values):
        values = np.asarray(values, np.float32) - 120
        return values / np.linalg.norm(values, axis=1, keepdims=True)


class Asked(Gallery):
    """A gallery that keeps what it and those made of it were asked, and what they showed."""

    asked, shown = [], []

    def without(self, images):
        apart = super().without(images)
        apart.__class__ = Asked
        return apart

    def paint(self, prompts, count=10, progress=True):
        rows = super().paint(prompts, count, progress)
        self.asked.extend(prompts)
        self.shown.extend(image for row in rows for image in row)
        return rows


@pytest.fixture(scope="module")
def recording():
    return recorded(pictures(40))


@pytest.fixture
def gallery():
    """60 pictures, of which the first 40 are the probing set of `recording`."""
    Asked.asked.clear()
    Asked.shown.clear()
    return Asked(pictures(60), Colours())


def dissect(painter, chat=None):
    return nb.DescribeAndDissect(Captioner(), chat or Chat(), painter, Colours(), image_size=48)


def silent(*step):
    """Watches a run and says nothing."""


def test_describe_and_dissect_asks_for_candidates_and_shows_no_exemplar(recording, gallery):
    method, seen = dissect(gallery), {picture(number).tobytes() for number in range(40)}
    with pytest.warns(UserWarning, match="images of the gallery that were looked at show what the probing set shows"):
        table = method(recording, recording.images, {"conv": [0, 1, 2]}, watch=silent)
    assert set(table.method) == {"Describe-and-Dissect (gallery)"} and set(table.description) <= {*gallery.asked, None}
    assert len(gallery.shown) >= 20 and not {image.tobytes() for image in gallery.shown} & seen
    assert not any(text.startswith("One realistic image") for text in gallery.asked)


def test_a_trace_says_what_its_pictures_are(recording, gallery):
    with pytest.warns(UserWarning, match="passed over"):
        trace = dissect(gallery).trace(recording, "conv", 0, watch=silent)
    assert trace.painted.prompts == {candidate: candidate for candidate in trace.proposed.candidates}
    assert not {image.tobytes() for row in trace.painted_images.values() for image in row} & {picture(number).tobytes() for number in range(40)}
    said = "photographs of a gallery stand in for painted images"
    assert trace.stood_in == painted_message(trace)[0]["stood_in"] == trace.plot().get_suptitle().splitlines()[-1] == said


def test_where_a_painter_paints_nothing_stood_in(recording):
    trace = dissect(Speaker()).trace(recording, "conv", 0, watch=silent)
    assert trace.stood_in == painted_message(trace)[0]["stood_in"] == "" and "\n" not in trace.plot().get_suptitle()


def test_the_prompts_tuner_says_that_the_painters_prompt_is_not_used(recording, gallery):
    notes = [PromptsTuner(dissect(painter, chat=nb.Consensus()), recording, "conv", 0).notes for painter in (gallery, Speaker())]
    assert notes == [{"paint": "Not used: nothing is painted, and a gallery looks for the candidate itself."}, {}]


def test_cosy_asks_for_descriptions_and_says_what_stood_in(recording, gallery):
    table = pd.DataFrame({"layer": "conv", "unit": [0, 1], "description": ["red", "green things"], "score": 0.0, "method": "mine"})
    with pytest.warns(UserWarning, match="passed over"):
        values = nb.Synthesis(gallery, count=8)(table, recording)
    assert set(gallery.asked) == {"red", "green things"} and set(values.measure) == {"CoSy AUC (gallery)", "CoSy MAD (gallery)"} and values.value.notna().all()
    with pytest.raises(TooFewImages, match="has 60 images, and 61 are asked"):
        nb.Synthesis(gallery, count=61)(table, recording)


def test_the_bench_refuses_a_gallery_that_cannot_do_before_a_model_is_loaded(recording):
    method, target, images = nb.DescribeAndDissect, recording.target, recording.images
    for few, settings, said in ((pictures(9), {}, "has 9 images, and 10 are asked"), (pictures(40), {}, "the 40 images of the gallery are the probing set itself"),
                                (pictures(12), {"images_per_candidate": 20}, "has 12 images, and 20 are asked")):
        given = {"painter": Gallery(few, Colours())} | settings
        with pytest.raises(TooFewImages, match=said):
            check_needs(method, given, target, images)
        check_needs(method, given | {"select": False}, target, images)
    with pytest.raises(TooFewImages, match="has 9 images"):
        nb.Workbench(target, images, painter=Gallery(pictures(9), Colours())).method("describe-and-dissect")


def test_a_gallery_that_turns_out_too_small_stops_the_run(recording):
    with pytest.raises(TooFewImages, match=r"3 of the 43 images of the gallery are left for .* \(40 are in the probing set\), and 10 are asked"):
        dissect(Gallery(pictures(43), Colours()))(recording, recording.images, {"conv": [0]}, watch=silent)


@pytest.mark.filterwarnings("ignore:.*passed over")
def test_what_was_seen_is_kept_under_the_images_that_are_kept_apart(recording, gallery):
    activations = LayerActivations(recording.target, "conv")
    one, other = (nb.ProbingSet.from_images([picture(number) for number in range(start, start + 30)]) for start in (0, 30))
    studios = [Studio(gallery, None, activations, images, count=5) for images in (one, other, one)]
    seen = [studio.record(["red"])["red"][0] for studio in studios]
    assert np.array_equal(seen[0], seen[2], equal_nan=True) and not np.array_equal(seen[0], seen[1], equal_nan=True)
    assert gallery.asked == ["red", "red"]  # the third time it was known

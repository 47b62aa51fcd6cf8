"""The model of MILAN: masked features, beam search against an exhaustive one, saving, and bad input."""
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from neuronbench.embedded.networks import network_annotations, network_formulas, wordings
from neuronbench.embedded.scenes import CONCEPTS
from neuronbench.embedded.world import means
from neuronbench.foundation.region_captioner import (START, STOP, RegionCaptioner, Speaker, StageFeatures, masked_mean, split_words,
                                                     train_region_captioner, word_list, word_numbers)


def captioner(words=("red", "blue"), features=4):
    torch.manual_seed(0)
    known = word_list(words)
    models = Speaker(len(known), features, 8, 4), Speaker(len(known), 0, 8, 4)
    return RegionCaptioner(*models, known, torch.stack([torch.zeros(features), torch.ones(features)]), "an encoder")


def test_a_masked_mean_is_the_mean_over_the_mask():
    maps, masks = torch.rand(3, 5, 8, 8), torch.rand(3, 8, 8) > 0.5
    expected = torch.stack([own[:, mask].mean(1) for own, mask in zip(maps, masks)])
    assert torch.allclose(masked_mean(maps, masks.float()), expected, atol=1e-6)
    assert torch.allclose(masked_mean(maps, torch.zeros(3, 8, 8)), maps.mean((2, 3)), atol=1e-6)


def test_features_depend_on_the_region_only_through_the_mask():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    encoder = StageFeatures(network, ["0"], lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, "cpu")
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 200
    left = np.arange(8)[None, :].repeat(8, 0) < 4
    found = encoder([Image.fromarray(pixels), Image.fromarray(0 * pixels)], np.stack([left, left]))
    assert found.shape == (2, 4) and np.allclose(found[0], found[1])
    with pytest.raises(ValueError, match="2 images and 1 masks"):
        encoder([Image.new("RGB", (8, 8))] * 2, left[None])


def test_the_widest_beam_finds_the_likeliest_phrase():
    model, features, length = captioner(), np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32), 3
    says = [number for number, word in enumerate(model.words) if number >= STOP and word != "<unknown>"]
    found = model.phrases(features, beam=40, length=length, weight=0.2, count=1)
    for own, [best] in zip(features, found):
        scores = {}
        for said in itertools.product(says, repeat=length - 1):
            said = [*said, STOP]
            said = said[: said.index(STOP) + 1]
            numbers = torch.tensor([[START, *said]])
            with torch.no_grad():
                given, anyway = (-model_.loss(numbers, *regions).item() * len(said)
                                 for model_, regions in ((model.speaker, (torch.from_numpy(own)[None],)), (model.language, ())))
            scores[tuple(said)] = given - 0.2 * anyway
        assert best.score == pytest.approx(max(scores.values()), abs=1e-4)
        likeliest = max(scores, key=scores.get)
        assert best.text == " ".join(model.words[number] for number in likeliest if number != STOP)


def test_a_saved_captioner_says_the_same(tmp_path):
    model, features = captioner(), np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    model.save(tmp_path)
    again = RegionCaptioner.load(tmp_path)
    assert again.words == model.words and again.encoder == "an encoder"
    for one, other in zip(model.phrases(features), again.phrases(features)):
        assert one[0].score == pytest.approx(other[0].score, abs=0.02)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        RegionCaptioner.load(tmp_path)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected units x regions x 4"):
        captioner().phrases(np.zeros((2, 5, 7), np.float32))
    with pytest.raises(ValueError, match="descriptions of 3 units"):
        train_region_captioner(np.zeros((2, 5, 4), np.float32), [["a"]] * 3, "x")
    with pytest.raises(ValueError, match="all are empty"):
        train_region_captioner(np.zeros((2, 5, 4), np.float32), [[" "], []], "x")


def test_held_out_units_choose_the_pass_and_give_no_words():
    features = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    held = np.arange(6) == 5
    model, losses = train_region_captioner(features, [["red"]] * 5 + [["purple"]], "x", held, hidden=8, embedding=4, epochs=3)
    assert len(losses) == 3 and all(len(pair) == 2 for pair in losses)
    assert "red" in model.words and "purple" not in model.words


def test_words_are_split_and_numbered():
    assert split_words("Dogs' ears, half-open!") == ["dogs", "'", "ears", ",", "half-open", "!"]
    words = word_list(["a b", "c"])
    assert word_numbers(["a z", "c"], words).tolist() == [[1, words.index("a"), 3, 2], [1, words.index("c"), 2, 0]]


@pytest.mark.parametrize("number", range(3))
def test_what_people_write_means_what_was_planted(number):
    for unit, formula in enumerate(network_formulas(number)):
        texts = wordings(formula, seed=unit)
        assert len(set(texts)) == 3
        assert all(means(text, formula) for text in texts), (formula, texts)


def test_annotations_name_every_unit_three_times():
    table = network_annotations(1)
    assert list(table.columns) == ["layer", "unit", "description"]
    assert (table.groupby(["layer", "unit"]).description.nunique() == 3).all()
    assert set(network_formulas(1)[: len(CONCEPTS)]) == set(CONCEPTS)

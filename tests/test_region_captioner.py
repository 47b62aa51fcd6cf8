"""The model of MILAN: masked features, beam search against an exhaustive one, saving, and bad input."""
import copy
import itertools
import os
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

import neuronbench as nb

from neuronbench.embedded.training.networks import network_annotations, network_formulas, wordings
from neuronbench.embedded.drawing.scenes import CONCEPTS
from neuronbench.embedded.world import World
from neuronbench.foundation.region_captioner import (START, STOP, RegionCaptioner, Speaker, StageFeatures, load_published, masked_mean, split_words,
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
        for said in itertools.product(says, repeat=length):
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


@pytest.mark.parametrize("length", [1, 2, 15])
def test_the_length_counts_words_and_not_the_end(length):
    model = captioner()
    for part in (model.speaker, model.language):
        part.next.bias.data[STOP] -= 20  # nothing but the length ends it
    [found] = model.phrases(np.zeros((1, 5, 4), np.float32), beam=2, length=length)
    assert {len(split_words(phrase.text)) for phrase in found} == {length}


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
        assert all(World.same_meaning(text, formula) for text in texts), (formula, texts)


def test_annotations_name_every_unit_three_times():
    table = network_annotations(1)
    assert list(table.columns) == ["layer", "unit", "description"]
    assert (table.groupby(["layer", "unit"]).description.nunique() == 3).all()
    assert set(network_formulas(1)[: len(CONCEPTS)]) == set(CONCEPTS)


# the published weights

WORDS = ["red", "things", "sky", "-", "blue", "."]
SETTINGS = {"words": len(WORDS) + 4, "hidden": 12, "embedding": 5, "layers": 2}


def _tensors(seed, **shapes):
    """Random weights of these shapes; a name's "__" is a dot."""
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}


def published(attention=None, encoder="resnet18", lm_words=WORDS):
    """A checkpoint as `SerializableModule.save` of neuron-descriptions writes it, with all names and shapes of its Decoder, LanguageModel and encoder."""
    count, hidden, embedding, layers = SETTINGS.values()
    features = {"resnet18": 1024, "alexnet": 1152}[encoder]
    inner = attention or min(hidden, features)
    decoder = _tensors(0, init_h__0__weight=(hidden, features), init_h__0__bias=(hidden,), init_c__0__weight=(hidden, features), init_c__0__bias=(hidden,),
                       embedding__weight=(count, embedding), attend__query_to_hidden__weight=(inner, hidden), attend__query_to_hidden__bias=(inner,),
                       attend__key_to_hidden__weight=(inner, features), attend__key_to_hidden__bias=(inner,), attend__output__0__weight=(1, inner),
                       attend__output__0__bias=(1,), feature_gate__0__weight=(features, hidden), feature_gate__0__bias=(features,),
                       lstm__weight_ih=(4 * hidden, embedding + features), lstm__weight_hh=(4 * hidden, hidden), lstm__bias_ih=(4 * hidden,),
                       lstm__bias_hh=(4 * hidden,), output__1__weight=(count, hidden), output__1__bias=(count,))
    lm = _tensors(1, embedding__weight=(count, embedding), output__0__weight=(count, hidden), output__0__bias=(count,),
                  **{f"lstm__{kind}_l{layer}": shape for layer in range(layers) for kind, shape in
                     {"weight_ih": (4 * hidden, hidden if layer else embedding), "weight_hh": (4 * hidden, hidden), "bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}.items()})
    torch.manual_seed(2)
    network = torchvision.models.get_model(encoder, weights=None).state_dict()
    state = {**{f"encoder.encoder.model.{name}": value for name, value in network.items()}, "encoder.mean": torch.zeros(1, 3, 1, 1), "encoder.std": torch.ones(1, 3, 1, 1),
             **{f"lm.{name}": value for name, value in lm.items()}, **decoder}
    tokenize = {"properties": {"nlp": ({"nlp": {"lang": "en"}}, b"\x80bytes of spaCy"), "lemmatize": False, "lowercase": True, "ignore_stop": False, "ignore_punct": False},
                "children": {}}
    indexer = lambda words: {"properties": {"vocab": {"properties": {"tokens": tuple(words)}, "children": {}}, "tokenize": tokenize, "start": True, "stop": True, "pad": True,
                                            "unk": True, "length": None}, "children": {}}
    sizes = {"embedding_size": embedding, "hidden_size": hidden, "dropout": 0.5}
    return {"properties": {"indexer": indexer(WORDS), "encoder": {"properties": {"config": encoder, "pretrained": True}, "children": {}},
                           "lm": {"properties": {"indexer": indexer(lm_words), **sizes, "layers": layers}, "children": {}}, **sizes,
                           "attention_hidden_size": attention, "length": 15, "strategy": "rerank", "temperature": 0.2, "beam_size": 50},
            "children": {"encoder": "PyramidConvEncoder"}, "state_dict": state}


def saved(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "milan.pth")
    return tmp_path / "milan.pth"


def lstm(given, hidden, cell, weights, suffix=""):
    """The equations of an LSTM: gates i, f, g, o."""
    gates = given @ weights[f"weight_ih{suffix}"].T + weights[f"bias_ih{suffix}"] + hidden @ weights[f"weight_hh{suffix}"].T + weights[f"bias_hh{suffix}"]
    i, f, g, o = gates.chunk(4)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def by_hand(checkpoint, features, numbers, lm_numbers=None):
    """(log p(d | E), log p(d)) of words by the authors' numbers, the end included, one step at a time; `features` is (N, F)."""
    held = checkpoint["state_dict"]
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    linear = lambda name, given: given @ held[f"{name}.weight"].T + held[f"{name}.bias"]
    start, total, anyway = len(WORDS), 0.0, 0.0
    h, c = linear("init_h.0", features.mean(0)).tanh(), linear("init_c.0", features.mean(0)).tanh()
    for last, following in zip([start, *numbers], numbers):
        energies = linear("attend.output.0", (linear("attend.query_to_hidden", h) + linear("attend.key_to_hidden", features)).tanh())[:, 0]
        gated = (energies.softmax(0)[:, None] * features).sum(0) * linear("feature_gate.0", h).sigmoid()
        h, c = lstm(torch.cat([held["embedding.weight"][last], gated]), h, c, part("lstm."))
        total += float(linear("output.1", h).log_softmax(0)[following])
    lm, states = part("lm."), [(torch.zeros(12), torch.zeros(12)) for _ in range(2)]
    numbers = lm_numbers or numbers
    for last, following in zip([start, *numbers], numbers):
        given = lm["embedding.weight"][last]
        for layer in range(2):
            states[layer] = lstm(given, *states[layer], part("lm.lstm."), f"_l{layer}")
            given = states[layer][0]
        anyway += float(linear("lm.output.0", given).log_softmax(0)[following])
    return total, anyway


@pytest.mark.parametrize("attention, lm_words", [(None, WORDS), (7, WORDS), (None, WORDS[::-1])])
def test_published_weights_speak_by_their_equations(tmp_path, attention, lm_words):
    checkpoint = published(attention, lm_words=lm_words)
    model, encoder = load_published(saved(tmp_path, checkpoint), "cpu")
    features = torch.randn(2, 15, 1024, generator=torch.Generator().manual_seed(3))
    found = model.phrases(features.numpy(), beam=50, length=2, weight=0.2, count=1)  # of at most 43 phrases: no beam is dropped
    stop = len(WORDS) + 1
    for own, [best] in zip(features, found):
        scores = {}
        for said in itertools.chain([()], itertools.product(range(len(WORDS)), repeat=1), itertools.product(range(len(WORDS)), repeat=2)):
            other = [lm_words.index(WORDS[number]) for number in said]
            scores[said] = by_hand(checkpoint, own, [*said, stop], [*other, stop])
        likeliest = max(scores, key=lambda said: scores[said][0] - 0.2 * scores[said][1])
        given, anyway = scores[likeliest]
        assert best.given_regions == pytest.approx(given, abs=1e-3) and best.anyway == pytest.approx(anyway, abs=1e-3)
        assert best.score == pytest.approx(given - 0.2 * anyway, abs=1e-3)
        assert best.text.replace(" ", "") == "".join(WORDS[number] for number in likeliest)


def test_published_words_are_joined_as_the_authors_join_them(tmp_path):
    model, _ = load_published(saved(tmp_path, published()), "cpu")
    assert model.words == ("<pad>", "<start>", "<stop>", "<unknown>", *WORDS)
    from neuronbench.foundation.region_captioner import _joined
    assert _joined(["red", "things", ".", "sky", "-", "blue"]) == "red things. sky-blue"


@pytest.mark.parametrize("name", ["resnet18", "alexnet"])
def test_the_published_encoder_sees_what_theirs_sees(tmp_path, name):
    _, encoder = load_published(saved(tmp_path, published(encoder=name)), "cpu")
    torch.manual_seed(2)
    network = torchvision.models.get_model(name, weights=None).eval()
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(3)]
    masks = np.zeros((3, 224, 224), bool)
    masks[0, 30:90, 100:200], masks[1, 5, 5] = True, True  # a region, a pixel, and nothing
    batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    batch = (batch - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    maps, expected = [], []
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4"] if name == "resnet18" else [f"features.{number}" for number in (0, 3, 6, 8, 10)]
    hooks = [network.get_submodule(stage).register_forward_hook(lambda module, given, output: maps.append(output)) for stage in stages]
    with torch.no_grad():
        network(batch)
    for own in maps:  # PyramidConvEncoder.forward
        scaled = F.interpolate(torch.from_numpy(masks)[:, None].float(), own.shape[2:], mode="bilinear", align_corners=False)
        for mask in scaled:
            if not mask.isclose(torch.zeros(())).all():
                mask /= mask.sum()
        expected.append((own * scaled).sum((2, 3)))
    assert np.allclose(encoder(images, masks), torch.cat(expected, 1).numpy(), atol=1e-4) and len(hooks) == 5


def test_published_milan_describes_a_unit(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))
    method = nb.MILAN.published(saved(tmp_path, published()), "cpu", exemplars=3, beam=4)
    rng = np.random.default_rng(0)
    images = nb.ProbingSet.from_images([Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(6)])
    preprocess = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    found = nb.record(nb.Target(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), ["0"], preprocess, device="cpu"), images, pool="max", progress=False)
    trace = method.trace(found, "0", 1)
    assert trace.phrases.score.is_monotonic_decreasing and np.isfinite(trace.phrases.score).all()
    other = StageFeatures(method.region_encoder.network, method.region_encoder.stages, method.region_encoder.preprocess, "cpu")
    with pytest.raises(ValueError, match="another encoder"):
        nb.MILAN(method.region_captioner, other)  # it averages otherwise
    with pytest.raises(TypeError, match="kept as the authors' file"):
        method.region_captioner.save(tmp_path / "own")


def test_spacys_settings_are_read_as_a_dictionary_and_none_of_its_code_runs(tmp_path, monkeypatch):
    module = types.ModuleType("thinc.config")
    module.Config = type("Config", (dict,), {"__module__": "thinc.config", "__init__": lambda self, data: (dict.__init__(self, data), setattr(self, "section_order", ["nlp"]))[0]})
    monkeypatch.setitem(sys.modules, "thinc", types.ModuleType("thinc"))
    monkeypatch.setitem(sys.modules, "thinc.config", module)
    checkpoint = published()
    tokenizer = checkpoint["properties"]["indexer"]["properties"]["tokenize"]["properties"]
    tokenizer["nlp"] = module.Config({"nlp": {"lang": "en"}}), b"\x00\xff"
    path = saved(tmp_path, checkpoint)
    monkeypatch.delitem(sys.modules, "thinc.config")
    monkeypatch.delitem(sys.modules, "thinc")
    assert load_published(path, "cpu")[0].words[4:] == tuple(WORDS)


class Running:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def _changed(change):
    def changed(checkpoint):
        change(checkpoint)
        return checkpoint
    return changed


@pytest.mark.parametrize("change, sentence", [
    (lambda held: {**held, "more": Running()}, "is refused: it is not plain weights and could execute code"),
    (lambda held: held["state_dict"], "no checkpoint of MILAN: it has no properties, children, state_dict"),
    (lambda held: [1, 2], "no checkpoint of MILAN"),
    (_changed(lambda held: held["properties"].update(lm=None)), "no language model"),
    (_changed(lambda held: held["properties"].update(hidden_size=13)), "do not fit: .* expected \\(13, 1024\\)"),
    (_changed(lambda held: held["properties"].update(hidden_size="12")), "hidden_size is 12, expected a whole number"),
    (_changed(lambda held: held["properties"].pop("embedding_size")), "embedding_size is missing"),
    (_changed(lambda held: held["properties"]["indexer"]["properties"].pop("vocab")), "no vocabulary"),
    (_changed(lambda held: held["properties"]["indexer"]["properties"]["vocab"]["properties"].update(tokens=("red", "red"))), "each of them once"),
    (_changed(lambda held: held["properties"]["lm"]["properties"]["indexer"]["properties"]["vocab"]["properties"].update(tokens=tuple("abcdef"))), "different words, such as '-'"),
    (_changed(lambda held: held["children"].update(encoder="SpatialConvEncoder")), "the encoder SpatialConvEncoder of resnet18"),
    (_changed(lambda held: held["properties"]["encoder"]["properties"].update(config="vgg11")), "of vgg11: expected a PyramidConvEncoder of alexnet"),
    (_changed(lambda held: held["state_dict"].pop("feature_gate.0.bias")), "'feature_gate.0.bias' is missing, expected \\(1024,\\)"),
    (_changed(lambda held: held["state_dict"].update({"lm.lstm.weight_ih_l2": torch.ones(2)})), "'lstm.weight_ih_l2' is \\(2,\\), expected no such weights"),
    (_changed(lambda held: held["state_dict"]["output.1.bias"].fill_(torch.nan)), "'output.1.bias' is NaN or infinite"),
])
def test_other_files_are_refused_in_a_sentence(tmp_path, monkeypatch, change, sentence):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, change(copy.deepcopy(published())))
    with pytest.raises(ValueError, match=sentence) as refused:
        load_published(path, "cpu")
    assert "\n" not in str(refused.value) and not (tmp_path / "it-ran").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint of MILAN, such as milan-base.pth"):
        load_published(tmp_path / "none.pth")


@pytest.mark.parametrize("size", [0, 1, 5000, 1_000_000])
def test_a_file_that_is_cut_off_is_refused(tmp_path, size):
    path = saved(tmp_path, published())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="cannot be read|is refused: .* or is damaged"):
        load_published(path)

"""The protocols of borrowed models: ours have all that they ask for, and what another lacks is said in a sentence."""
import inspect
import re

import numpy as np
import pytest
from PIL import Image

import neuronbench as nb
from neuronbench.embedded.drawing.painter import ScenePainter
from neuronbench.embedded.drawing.vocabulary import VocabularyTable
from neuronbench.foundation import interfaces
from neuronbench.foundation.captioner import Captioner, ChatCaptioner, ConceptCaptioner
from neuronbench.foundation.chat import Chat
from neuronbench.foundation.clip import CLIP
from neuronbench.foundation.conse import ConSE
from neuronbench.foundation.consensus import Consensus
from neuronbench.foundation.gallery import Gallery
from neuronbench.foundation.interfaces import (EXAMPLES, CaptionModel, Classifier, ImageTextModel, LanguageModel, PictureFinder, RegionCaptionModel, RegionEncoder,
                                               SegmentationModel, SentenceModel, TextToImageModel, check_model, lacking, members)
from neuronbench.foundation.local_chat import LocalChat
from neuronbench.foundation.painter import Painter
from neuronbench.foundation.region_captioner import PublishedFeatures, RegionCaptioner, StageFeatures
from neuronbench.foundation.segmenter import CLIPSegmenter, Segmenter
from neuronbench.foundation.sentences import Sentences
from neuronbench.probe.target import Target

OURS = [
    (CLIP, ImageTextModel), (CLIP, SentenceModel), (Sentences, SentenceModel), (ConSE, ImageTextModel), (Target, Classifier),
    (Captioner, CaptionModel), (ConceptCaptioner, CaptionModel), (ChatCaptioner, CaptionModel),
    (Chat, LanguageModel), (LocalChat, LanguageModel), (Consensus, LanguageModel), (VocabularyTable, LanguageModel),
    (Painter, TextToImageModel), (ScenePainter, TextToImageModel), (Gallery, TextToImageModel), (Gallery, PictureFinder), (Segmenter, SegmentationModel), (CLIPSegmenter, SegmentationModel),
    (StageFeatures, RegionEncoder), (PublishedFeatures, RegionEncoder), (RegionCaptioner, RegionCaptionModel),
]


def names(pairs):
    return [f"{kind.__name__}-{interface.__name__}" for kind, interface in pairs]


def set_by(kind):
    """The attributes that a class or its bases set on `self`."""
    return {name for part in kind.__mro__ if part.__module__.startswith("neuronbench") for method in vars(part).values() if inspect.isfunction(method)
            for name in method.__code__.co_names if f"self.{name}" in inspect.getsource(method)}


@pytest.mark.parametrize("kind, interface", OURS, ids=names(OURS))
def test_ours_have_what_is_asked_for(kind, interface):
    missing = [name for name in members(interface) if not hasattr(kind, name) and name not in set_by(kind)]
    assert not missing


@pytest.mark.parametrize("kind, interface", OURS, ids=names(OURS))
def test_ours_take_what_the_protocol_promises(kind, interface):
    for name in members(interface):
        promised = vars(next(part for part in interface.__mro__ if name in vars(part) or name in vars(part).get("__annotations__", ()))).get(name)
        if promised is not None:
            asked, given = inspect.signature(promised).parameters, inspect.signature(getattr(kind, name)).parameters
            assert set(asked) <= set(given), f"{kind.__name__}.{name} does not take {set(asked) - set(given)}"
            needed = {key for key, parameter in given.items() if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD}
            assert needed <= set(asked), f"{kind.__name__}.{name} wants {needed - set(asked)} as well"


def test_the_worlds_models_have_what_is_asked_for():
    world = nb.world()
    for name, interface in (("clip", ImageTextModel), ("target", Classifier), ("captioner", CaptionModel), ("chat", LanguageModel), ("painter", TextToImageModel),
                            ("segmenter", SegmentationModel), ("region_encoder", RegionEncoder), ("region_captioner", RegionCaptionModel)):
        check_model(name, getattr(world, name), interface)


def whole(interface):
    """A class with all members of a protocol."""
    return type("Whole", (), {name: (lambda self: None) for name in members(interface)})


@pytest.mark.parametrize("interface, name", [(interface, name) for interface in EXAMPLES for name in members(interface)],
                         ids=lambda value: getattr(value, "__name__", value))
def test_a_model_that_lacks_a_member_is_refused_by_name(interface, name):
    given = whole(interface)()
    check_model("model", given, interface)
    delattr(type(given), name)
    assert lacking(given, interface) == [name]
    said = f"cannot {name}()" if callable(getattr(interface, name, None)) else f"has no {name}"
    with pytest.raises(TypeError, match=f"^model is .*, which {re.escape(said)}: expected a model such as nb[.]{re.escape(EXAMPLES[interface])}$"):
        check_model("model", given, interface)


def test_an_attribute_is_not_computed_to_see_that_it_is_there():
    class Slow(whole(SegmentationModel)):
        @property
        def fingerprint(self):
            raise AssertionError("all weights are read")

    assert not lacking(Slow(), SegmentationModel)


def test_what_an_object_passes_on_to_another_counts():
    class Around:
        def __init__(self, model):
            self.model = model

        def __getattr__(self, name):
            return getattr(self.model, name)

    assert not lacking(Around(whole(LanguageModel)()), LanguageModel)
    assert lacking(Around(object()), LanguageModel) == members(LanguageModel)


def test_each_example_is_a_public_name():
    for interface, example in EXAMPLES.items():
        assert hasattr(nb, example.partition("(")[0]) and interface.__name__ in interfaces.__all__


def test_a_list_and_a_probing_set_are_images():
    pictures = [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")]
    for images in (pictures, nb.ProbingSet.from_images(pictures)):
        assert not lacking(images, interfaces.Images)
        assert np.array_equal(images[1], pictures[1]) and len(images) == 2

"""A real network on photographs whose classes are known: one folder for each class, named as ImageNet names it ("tabby", "African_elephant").

NEURONBENCH_PHOTOGRAPHS names the folder; without it nothing is measured here. A unit of the final layer is asked about if its class has photographs in the folder,
and the class name is taken for the truth. The captions of `nb.photographs` are the class names of another network that was trained on the same classes, so the true
words are among those that can be said: what is measured is whether the steps find them, not whether a captioner would. Common words as captions show
what is left without that.
"""

import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

import neuronbench as nb
from neuronbench.describe.concepts import common_words
from neuronbench.describe.similarity import SIMILARITIES
from neuronbench.words import readable_classes

FOLDER = os.environ.get("NEURONBENCH_PHOTOGRAPHS", "")
WORDS, CONSTANT = 20_000, "depictions"  # captions that are no class names; the description that says nothing
EXACT = 0.87  # share of units that get the name of their class, where class names are the concepts
MARGIN = 0.20  # mean cosine with the class name above that of the constant


def known_units(target, images):
    """{unit: class name} of the final layer's units whose class has photographs."""
    shown = {name.replace("_", " ").lower() for name in images.classes}
    return {unit: name for unit, name in enumerate(readable_classes(target.classes)) if name.lower() in shown}


def agreement(sentences, told, truth):
    """(how many units have a description, mean cosine of these with the class names, that of the constant, that of other units' descriptions)."""
    told = told.drop_duplicates("unit").set_index("unit").description.reindex(list(truth))
    there = told.notna().to_numpy()
    if not there.any():
        return 0, np.nan, np.nan, np.nan
    named = sentences.embed_texts([name.lower() for name in truth.values()], progress=False)
    said = sentences.embed_texts([text.lower() for text in told[there]], progress=False)
    constant = sentences.embed_texts([CONSTANT], progress=False)[0]
    others = np.roll(said, len(said) // 2, axis=0)
    return int(there.sum()), float((said * named[there]).sum(1).mean()), float((named[there] @ constant).mean()), float((others * named[there]).sum(1).mean())


def describe_and_dissect_rows(bench, known, truth):
    """Rows of Describe-and-Dissect with what stands in for its models, and of the same with other captions or another consensus."""
    method = nb.DescribeAndDissect(known.captioner, known.chat, known.painter, known.clip)
    variants = {
        "": method,
        ", 5 exemplars": replace(method, exemplars=5),
        ", 20,000 common words as captions": replace(method, captioner=nb.ConceptCaptioner(known.clip, common_words(WORDS))),
        ", the central caption, no gallery": replace(method, select=False),
        ", consensus of shared words": replace(method, chat=nb.Consensus()),
    }
    for name, variant in variants.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # units without a description are counted
            told = variant(bench.recording, bench.images, {"classifier": list(truth)})
        described, cosine, constant, others = agreement(known.sentences, told, truth)
        asked = not name
        what = f"Describe-and-Dissect, stand-ins, final layer{name}"
        yield f"{what}: described", described, f"of {len(truth)}", f"{len(truth)}" if asked else "", described == len(truth) or not asked
        yield f"{what}: cosine above the constant's", cosine - constant, "", f">= {MARGIN}" if asked else "", cosine - constant >= MARGIN or not asked
        yield f"{what}: above other units' descriptions", cosine - others, "", "", True


def clip_dissect_rows(known, images, truth, folder):
    """Rows of CLIP-Dissect on all photographs: how many units get their class name, and how near the words come, by similarity function and number of images."""
    recording = nb.record(known.target, images, folder, progress=False)
    nearest = known.clip.embed_images(images, progress=False) @ known.clip.embed_texts(known.captions, progress=False).T
    classes = [images.classes[label].replace("_", " ").lower() for label in images.labels]
    right = [known.captions[place].lower() == name for place, name in zip(nearest.argmax(1), classes)]
    yield "photographs whose nearest class name by ConSE is theirs", float(np.mean(right)), "", "", True
    for concepts, named in ((known.captions, "class names"), (WORDS, f"{WORDS:,} words")):
        for name, top_k in [*((name, None) for name in SIMILARITIES), ("soft_wpmi", 100), ("wpmi", 28)]:
            method = nb.CLIPDissect(known.clip, concepts, similarity=name, top_k=top_k)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a unit without a description has not got its name
                told = method(recording, images, {"classifier": list(truth)})
            _, cosine, constant, _ = agreement(known.sentences, told, truth)
            exact = float(np.mean([said.lower() == word.lower() for said, word in zip(told.description.fillna(""), truth.values())]))
            taken = method.trace(recording, "classifier", next(iter(truth))).top_k
            what, asked = f"CLIP-Dissect, {named}, {name}" + (f" over {taken}" if taken else ""), (name, top_k) == ("soft_wpmi", None)
            if named == "class names":
                yield f"{what}: exact", exact, "", f">= {EXACT}" if asked else "", exact >= EXACT or not asked
            yield f"{what}: cosine (the constant's: {constant:.2f})", cosine, "", "", True


def rows():
    if not FOLDER:
        yield "real photographs (NEURONBENCH_PHOTOGRAPHS names no folder of classes)", np.nan, "", "unmeasured", True
        return
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, NEURONBENCH_CACHE=cache):
        known = nb.photographs(Path(FOLDER), layers="classifier")
        bench = nb.Workbench(known.target, known.images, Path(cache) / "photographs.zarr")
        photographs = nb.ProbingSet.from_folder(FOLDER)
        truth = known_units(known.target, photographs)
        if not truth:
            raise ValueError(f"no folder in {FOLDER!r} has the name of a class of ImageNet, such as African_elephant")
        yield from clip_dissect_rows(known, photographs, truth, Path(cache) / "all.zarr")
        yield from describe_and_dissect_rows(bench, known, truth)

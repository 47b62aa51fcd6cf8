"""Text from outside with half characters, escapes and marks that turn the line, wherever it may enter: it is cleaned and costs nothing else."""
import numpy as np
import pandas as pd
import pytest

import neuronbench as nb
from neuronbench.basics import clean_text, content_key
from neuronbench.cli import shown, table_text
from neuronbench.describe.concepts import concept_set
from neuronbench.describe.descriptions import describe_frame, read_descriptions, write_descriptions
from neuronbench.describe.falcon import CaptionCorpus
from neuronbench.describe.patch_vocabulary import PatchVocabulary
from neuronbench.foundation.chat import Answer

EVIL = ["red \ud83d boat", "red \udca9boat", "\x1b[2J\x1b[1;1Hred boat", "\x1b]0;mine\x07red boat", "red\u202e boat\u2066", "red\x00 bo\x08at\x7f", "\x9b31mred boat", "red\r\nboat", "\x1bcred boat"]


def hostile(text):
    return not text.isprintable() or clean_text(text) != text


@pytest.mark.parametrize("evil", EVIL)
def test_what_a_terminal_is_shown_is_one_printable_line(evil):
    assert shown(evil).isprintable() and "boat" in shown(evil)
    assert not [letter for letter in table_text(pd.DataFrame({"description": [evil, "sea"]}, dtype=object)) if not letter.isprintable() and letter != "\n"]


@pytest.mark.parametrize("evil", EVIL)
def test_descriptions_are_clean_in_the_table_and_from_a_file(evil, tmp_path):
    table = describe_frame("layer", [0, 1, 2], [evil, None, "sea"], [1.0, np.nan, 0.5], "method")
    assert clean_text(table.description[0]) == table.description[0] and pd.isna(table.description[1]) and table.description[2] == "sea"
    content_key(table.description[0])
    write_descriptions(table, tmp_path / "table.csv")
    assert read_descriptions(tmp_path / "table.csv").description[0] == table.description[0]
    row = f'layer,unit,description,similarity\nlayer,0,"{evil}",1\n'
    (tmp_path / "given.csv").write_bytes(row.encode("utf-8", "ignore"))
    assert not set(read_descriptions(tmp_path / "given.csv").description[0]) & set("\x1b\x9b\u202e\x00")


@pytest.mark.parametrize("evil", EVIL)
def test_concepts_vocabularies_and_captions_are_clean(evil):
    assert not [concept for concept in concept_set([evil, "sea"]) if hostile(concept)] and len(concept_set([evil, "sea"])) == 2
    assert concept_set(["sea", "\u202e\x1b"]) == ["sea"]
    known = PatchVocabulary(clip=None, vocabulary={"boat": [evil, "sea"]}).vocabulary["boat"]
    assert len(known) == 2 and not any(map(hostile, known))
    corpus = CaptionCorpus([evil, "sea"])
    assert len(list(corpus)) == 2 and not any(map(hostile, corpus)) and corpus.fingerprint


@pytest.mark.parametrize("evil", EVIL)
def test_texts_with_half_characters_have_vectors(evil, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    vectors = nb.world().clip.embed_texts([evil, clean_text(evil)], progress=False)
    assert np.allclose(vectors[0], vectors[1]) and np.isfinite(vectors).all()


@pytest.mark.parametrize("evil", EVIL)
def test_class_names_of_a_target_are_clean(evil):
    import torch

    target = nb.Target(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), ["1"], lambda image: torch.zeros(3, 2, 2), classes=[evil, "sea"])
    assert not hostile(target.classes[0]) and target.classes[1] == "sea"
    assert not hostile(Answer(evil).text.replace("\n", " "))

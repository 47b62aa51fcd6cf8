"""The summariser without a language model: words that captions share, and with a sentence model the captions most like all others."""
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronbench.basics import cache_folder, clean_text
from neuronbench.foundation.chat import Request, Usage
from neuronbench.foundation.consensus import STOP_WORDS, Consensus, central_phrases, content_words, label_phrases, plain_phrase, shared_words


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def ask(texts=(), number=0):
    return Request(({"role": "user", "content": "What do they share?"},), texts=texts, number=number)


# The words that captions share

CAPTION_WORDS = ["red", "boat", "boats", "striped", "night", "sea", "a", "the", "of", "with", "house", "glass", "city", "cities", "Straße",
                 "don't", "2", "<b>", "photo of"]
captions = st.lists(st.lists(st.sampled_from(CAPTION_WORDS), max_size=8).map(" ".join) | st.text(max_size=30), max_size=8)


@settings(max_examples=300, deadline=None)
@given(captions, st.randoms(use_true_random=False))
def test_consensus_does_not_depend_on_order_and_uses_only_words_that_are_there(texts, rng):
    texts = [clean_text(text) for text in texts]  # as a request has them
    shuffled = rng.sample(texts, len(texts))
    words = shared_words(texts)
    assert words == shared_words(texts) == shared_words(shuffled)
    there = {word for text in texts for word in content_words(text)}
    assert set(words) <= there and not set(words) & STOP_WORDS and len(set(words)) == len(words)
    assert len(words) <= 5 or len(texts) == 1
    answer = Consensus().answers([ask(texts)])[0]
    assert answer.text == " ".join(words) and answer.model == "consensus" and bool(answer.text) != bool(answer.error)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["striped", "boat", "house", "night", "sea", "flag"]), min_size=1, unique=True), st.integers(2, 10))
def test_consensus_finds_what_all_share(others, count):
    texts = [f"a photo of a red {others[number % len(others)]} number {number}" for number in range(count)]
    assert "red" in shared_words(texts)


@pytest.mark.parametrize("texts, expected", [
    (["a striped red boat with a flag at sea at night", "a red house in a field", "a small red bird in a tree", "red flowers in a vase",
      "a man in a red hat", "a boat at night", "a red kite on the beach by day", "a red door", "there is a red car", "a close up of a red apple"],
     "red"),
    (["there is a dog that is laying down on the grass", "a close up of a brown dog on grass", "araffe dog sitting in the grass",
      "two dogs playing in the grass"], "dog grass"),
    (["a black and white photo of a snowy mountain", "a snowy mountain in the background", "snowy mountains", "a photo of a snowy mountain"],
     "snowy mountain"),
    (["a hot air balloon in the sky", "three hot air balloons over a field", "a hot air balloon at dawn"], "hot air balloon"),
    (["a fire in a fireplace", "a house on fire", "fire on a hill"], "fire"),
    (["a close up of a red and white striped shirt on a table"], "red white striped shirt table"),
    (["a dog", "a dog"], "dog"), (["a dog", "a cat"], ""), (["a photo of a"], ""), ([], ""), (["", ""], ""),
    (["glass", "a glass", "glasses", "a boat"], "glass"),
    (["one two three four five six seven"] * 10, "two three four five six"),
])
def test_consensus_on_captions(texts, expected):
    assert " ".join(shared_words(texts)) == expected


def test_consensus_says_why_there_is_no_answer():
    asked = [ask(texts) for texts in [(), ("a dog", "a cat"), ("a photo of a",)]]
    reasons = [answer.error.split(",")[0] for answer in Consensus().answers(asked)]
    assert reasons == ["no captions were given in Request.texts", "the 2 captions share no word", "there is no word in the caption"]


def test_consensus_costs_nothing_and_its_key_is_that_of_its_rule():
    consensus = Consensus()
    assert consensus.estimate([ask()] * 3) == Usage(3, cost=0.0)
    consensus.answers([ask(["a dog"])])
    assert consensus.usage == Usage(1, cost=0.0) and not list(cache_folder().iterdir())
    code = "from neuronbench.foundation.consensus import Consensus; print(Consensus().fingerprint)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == consensus.fingerprint


# The captions most like all others


class Letters:
    """A sentence model that counts letters, so that texts of the same letters mean the same."""

    fingerprint = "counts letters"

    def __init__(self):
        self.read = []

    def embed_texts(self, texts, progress=True):
        self.read.append(list(texts))
        counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], "f4").reshape(-1, 26) + 1e-3
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def defined(texts):
    """The definition in full: a matrix of all captions, each mean without the caption itself."""
    said = [phrase for text in texts for phrase in label_phrases(text)]
    vectors = Letters().embed_texts(said).astype("f8")
    mean = {phrase: np.mean([vectors[place] @ vectors[other] for other in range(len(said)) if other != place] or [0]).round(6) for place, phrase in enumerate(said)}
    chosen = []
    for phrase in sorted(mean, key=lambda phrase: (-mean[phrase], phrase)):
        if all(vectors[said.index(phrase)] @ vectors[said.index(better)] <= 0.81 for better in chosen):
            chosen.append(phrase)
    return chosen


@settings(max_examples=200, deadline=None)
@given(captions, st.randoms(use_true_random=False))
def test_central_phrases_are_what_they_are_defined_as_in_any_order(texts, rng):
    phrases = central_phrases(texts, Letters())
    assert phrases == defined(texts) == central_phrases(rng.sample(texts, len(texts)), Letters())
    vectors = Letters().embed_texts(phrases).astype("f8")
    assert (np.triu(vectors @ vectors.T, 1) <= 0.81).all() and set(phrases) <= {phrase for text in texts for phrase in label_phrases(text)}
    assert phrases or not any(map(content_words, texts))


@pytest.mark.parametrize("text, expected", [
    ("There is a close up of a red flower.", "red flower"), ("a black and white photo of a snowy mountain", "snowy mountain"), ("can opener", "can opener"),
    ("An image showing the sea", "sea"), ("a  Dog\non grass", "dog on grass"), ("the", "the"), ("a", "a"), ("photo", "photo"), ("...", ""), ("", ""),
    ("anaconda", "anaconda"), ("picture frame", "picture frame"), ("a pictures of", "pictures of"), ("Straße.", "straße"),
])
def test_a_phrase_is_a_caption_without_its_opening(text, expected):
    assert plain_phrase(text) == expected


@pytest.mark.parametrize("text, expected", [
    ("a tabby", ["tabby"]), ("black and gold garden spider", ["black and gold garden spider"]), ("jack-o'-lantern", ["jack-o'-lantern"]), ("747", ["747"]), ("...", []), ("", []),
    ("a red boat with a sail at sea at night", ["red boat", "red", "boat", "sail", "sea", "night"]),
    ("a photo of a man riding a wave on top of a surfboard", ["man riding", "man", "riding", "wave", "surfboard"]),
    ("a dog, two cats, 12 birds: in a room", ["dog", "two cats", "two", "cats", "birds", "room"]), ("it is what it is and there it was", []),
])
def test_a_short_caption_is_a_label_and_a_long_one_gives_its_pieces(text, expected):
    assert label_phrases(text) == expected


def test_what_is_said_often_counts_often():
    assert central_phrases(["abc", "xyz", "a photo of xyz"], Letters()) == ["xyz", "abc"]
    assert central_phrases(["ab", "ab", "ba"], Letters()) == ["ab"]  # which mean the same
    assert central_phrases(["ba", "cd", "ef"], Letters()) == ["ba", "cd", "ef"]  # nothing is near anything


def test_each_request_has_its_own_candidate_however_requests_are_parted():
    units = [("ab", "bc", "cd", "de", "ab"), ("xyz",), ("uv", "uv")]
    requests = [ask(texts[::-1] if number % 2 else texts, number) for texts in units for number in range(5)]
    consensus = Consensus(Letters())
    together, alone = consensus.answers(requests), [answer for request in requests for answer in consensus.answers([request])]
    assert together == alone and consensus.usage == Usage(30, cost=0.0)
    assert [answer.text for answer in together if answer.text] == [*central_phrases(units[0], Letters()), "xyz", "uv"]
    assert together[-1].error == "the captions have only 1 of 5 candidates, each at a cosine of at most 0.81 to the others, and Consensus has nothing else to go by"
    long = "a red boat with a sail at sea at night."
    assert [answer.error == "" and answer.text for answer in consensus.answers([ask([long]), ask([long], 1)])] == [long[2:-1], False]  # simplified alone
    assert together[0].model == "semantic consensus" and len(consensus.sentences.read) == 1 + 5 + 0


def test_a_semantic_consensus_says_who_it_is():
    consensus = Consensus(Letters())
    other = Letters()
    other.fingerprint = "counts other letters"
    assert len({Consensus().fingerprint, consensus.fingerprint, Consensus(other).fingerprint}) == 3 and consensus.fingerprint == Consensus(Letters()).fingerprint
    assert (consensus.name, Consensus().name) == ("semantic consensus", "consensus") and repr(consensus).startswith("Consensus(<") and repr(Consensus()) == "Consensus()"
    assert consensus.estimate([ask()] * 3) == Usage(3, cost=0.0)
    assert [one.stands_in.name for one in (Consensus(), consensus)] == ["consensus", "semantic consensus"] and Consensus().stands_in.sentence != consensus.stands_in.sentence


@pytest.mark.parametrize("texts, reason", [((), "no captions were given"), (("...",), "no word in the caption"), (("", "!"), "no word in the 2 captions")])
def test_a_semantic_consensus_says_why_there_is_no_answer(texts, reason):
    [answer] = Consensus(Letters()).answers([ask(texts)])
    assert answer.text == "" and reason in answer.error


def test_what_is_no_sentence_model_is_refused():
    with pytest.raises(TypeError, match=r"sentences is 'all-MiniLM-L6-v2', which cannot embed_texts\(\): expected a model such as nb.Sentences"):
        Consensus("all-MiniLM-L6-v2")

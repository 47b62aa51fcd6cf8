"""The one rule of when two descriptions say the same: what it must take for the same, what it must not, and that it is an equivalence whatever the text."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronbench.words import SameMeaning, same_meaning, stem, truth_key, words_of

PLURALS = {
    "boat": "boats", "house": "houses", "bus": "buses", "box": "boxes", "church": "churches", "dish": "dishes", "butterfly": "butterflies", "day": "days", "movie": "movies",
    "leaf": "leaves", "knife": "knives", "glove": "gloves", "glass": "glasses", "lens": "lenses", "gas": "gases", "potato": "potatoes", "shoe": "shoes", "toe": "toes", "piano": "pianos",
    "man": "men", "woman": "women", "fireman": "firemen", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "mouse": "mice", "goose": "geese", "fish": "fishes",
    "horse": "horses", "rose": "roses", "cheese": "cheeses", "axe": "axes", "pie": "pies", "tie": "ties", "eye": "eyes", "wing": "wings", "hand": "hands", "cactus": "cacti", "pizza": "pizzas",
}
NOUNS = st.sampled_from(sorted(PLURALS))
HOSTILE = "<img src=x onerror=alert(1)> \u202e\x1b[31m\x00 ' OR 1=1 -- {0} %s \ud83d船é"


def different(words):
    """The words, no two of them forms of one."""
    return len(set(map(stem, words))) == len(words)


# the same


@given(st.text())
def test_every_text_says_what_it_says(text):
    assert same_meaning(text, text) and same_meaning(text, f"  {text}\n")
    hash(same_meaning.key(text))


@given(st.text(), st.text())
def test_the_rule_is_symmetric(text, other):
    assert same_meaning(text, other) is same_meaning(other, text)


@pytest.mark.parametrize("word", PLURALS)
def test_a_word_and_its_plural_are_the_same(word):
    assert same_meaning(word, PLURALS[word]) and same_meaning(f"Two {PLURALS[word]}", f"two {word}")


@given(st.lists(NOUNS, min_size=1, max_size=6), st.randoms())
def test_order_case_spaces_punctuation_and_articles_carry_no_meaning(words, random):
    shuffled = random.sample(words, len(words))
    assert same_meaning(" ".join(words), " ".join(shuffled))
    assert same_meaning(" ".join(words), f"A {'  the '.join(shuffled).upper()}.") and same_meaning(" or ".join(words), " OR ".join(shuffled))
    assert same_meaning(" and ".join(words), ", ".join(shuffled)) and same_meaning(", ".join(words[1:] + ["ox"]) + f" or {words[0]}", " or ".join([*shuffled, "oxen"]))


@given(NOUNS, NOUNS, NOUNS)
def test_a_declared_synonym_is_the_same_in_every_text(word, other, third):
    same = SameMeaning({"vessel": word, "steam engine": "old vessel", "daytime": "not night"})
    assert same(f"{other} and not vessels", f"{other} and not {PLURALS[word]}") and same("steam engines", f"{word} old") and same(f"{third} not daytime", f"{third} night")
    assert not same_meaning("vessel", word) and same("night or daytime", f"{other} or not {other}")


@pytest.mark.parametrize("text, other", [
    ("boats, but not at night", "boat AND NOT night"), ("boat without sails", "boat and no sail"), ("cat or bird", "(bird OR cats)"), ("(cat OR bird) AND NOT night", "(bird or cats) and without night"),
    ("boat or (boat)", "boat"), ("ＢＯＡＴ", "boat"), ("bo\u200bat", "boat"), ("bird's nest", "birds nest"), ("red-and-white", "White, red"), ("STRASSE", "straße"), ("red_boat", "boat red"),
    ("not not night", "night"), ("cat or bird and cat", "cat"), ("a red boat on blue water", "boat red on water blue"), (None, "  "), (float("nan"), None), ("", "?!"), ("at night", "night"),
])
def test_the_same_words_are_the_same(text, other):
    assert same_meaning(text, other) and same_meaning(other, text)


# not the same


@given(st.lists(NOUNS, min_size=2, max_size=6, unique=True))
def test_different_words_are_never_the_same(words):
    assert different(words)
    [first, *others] = words
    for text, other in itertools.product([first, f"not {first}", f"{first} and {others[0]}", f"{first} or {others[0]}"], others + [" ".join(others), " or ".join(others), f"not {others[0]}", ""]):
        assert not same_meaning(text, other), (text, other)


@given(st.text(st.characters(categories=["L", "M", "Nd"]), min_size=1), st.text(st.characters(categories=["L", "M", "Nd"]), min_size=1))
def test_letters_of_every_script_tell_words_apart(text, other):
    same = list(map(stem, words_of(text))) == list(map(stem, words_of(other)))
    assert same_meaning(text, other) is same or {*words_of(text), *words_of(other)} & {"a", "an", "the", "or", "and", "but", "no", "not"}


@pytest.mark.parametrize("text, other", [
    ("boat", None), ("boat", "not boat"), ("boat and not night", "boat"), ("boat and not night", "boat and night"), ("boat or night", "boat and night"), ("boat night", "boat or night"),
    ("cat or bird and day", "cat or day and bird"), ("cat OR (bird AND day)", "(cat OR bird) AND day"), ("not (cat or bird)", "not cat or bird"), ("red boat and blue sea", "blue boat and red sea"), ("boat on a lake", "lake on a boat"),
    ("man riding a horse", "horse riding a man"), ("C", "C++"), ("कि", "की"), ("news", "new"), ("car", "care"), ("hat", "hate"), ("glass", "glasse"), ("means", "mean"), ("toes", "to"), ("bus", "bu"),
    ("1", "2"), ("船", "舟"), ("é", "e"), ("boat", HOSTILE), ("☀", "☁"), ("cat/dog", "cat or dog"),
])
def test_different_meanings_are_different(text, other):
    assert not same_meaning(text, other) and not same_meaning(other, text)


def test_hostile_text_is_text():
    assert same_meaning(HOSTILE, HOSTILE.upper()) and not same_meaning(HOSTILE, "") and SameMeaning(concepts=("boat",)).reading(f"{HOSTILE} boats") == "boat"
    assert not same_meaning("boat " * 3000, "boats or " * 3000 + "cat") and same_meaning("boat " * 3000, "boat")
    assert not same_meaning(" or ".join(map(str, range(3000))), " and ".join(map(str, range(3000))))


# truth

CHAINS = st.lists(st.tuples(st.sampled_from(["AND", "OR"]), st.booleans(), st.sampled_from("abcd")), min_size=1, max_size=7)


def table(chain):
    """The truth in every case, read from left to right."""
    rows = []
    for values in itertools.product([False, True], repeat=4):
        case, truth = dict(zip("abcd", values)), False
        for place, (join, denied, phrase) in enumerate(chain):
            value = case[phrase] != denied
            truth = value if place == 0 else truth and value if join == "AND" else truth or value
        rows.append(truth)
    return rows


@given(CHAINS, CHAINS)
def test_chains_have_one_key_exactly_if_they_are_true_in_the_same_cases(chain, other):
    assert (truth_key(chain) == truth_key(other)) is (table(chain) == table(other))


def test_all_short_chains_have_one_key_exactly_if_they_are_true_in_the_same_cases():
    terms = list(itertools.product(["AND", "OR"], [False, True], "abc"))
    chains = [chain for length in (1, 2, 3) for chain in itertools.product(terms, repeat=length)]
    pairs = {(truth_key(list(chain)), tuple(table(chain))) for chain in chains}
    assert len(pairs) == len({key for key, _ in pairs}) == len({truth for _, truth in pairs})


# what is declared


@pytest.mark.parametrize("synonyms, words", [
    ({"ship": "boat", "boat": "ships"}, "lead in a circle"), ({"ship": "ship"}, "lead in a circle"), ({"x": "cat or dog"}, "expected words without"), ({"a, b": "c"}, "expected words without"),
    ({"": "boat"}, "expected words without"), ({"ship": "!"}, "expected words without"),
])
def test_wrong_synonyms_are_sentences(synonyms, words):
    with pytest.raises(ValueError, match=words):
        SameMeaning(synonyms)


def test_only_the_concepts_count_where_they_are_given():
    same = SameMeaning({"ship": "boat"}, ("boat", "red", "night"))
    assert same("a nice ship, or so", "boat") and same("things in red", "red") and not same("red boat", "red") and not same("things", "red") and not same("a nice picture", "a picture")
    assert same.reading("ships at night, red") == "boat AND night" and same.reading("") == "" and not same(", boat", "boat")

"""The human study: balanced and blind design, answers that last, hand-worked statistics, and bad input."""

import itertools
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import krippendorff
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import neuronbench as nb
from neuronbench.evaluate import answers
from neuronbench.evaluate.answers import FILE, Session, balanced_tasks
from neuronbench.evaluate.study import Study, plot_ratings, rater_agreement, rating_table, read_responses, valid_responses
from neuronbench.probe.target import Target

HOSTILE = "<img src=x onerror=alert(1)> $\\frac$"


def preprocess(image):
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)


@pytest.fixture(scope="module")
def recording():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(12)]
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU())
    return nb.record(Target(network, ["0"], preprocess, device="cpu"), nb.ProbingSet.from_images(images), progress=False)


def described(units=range(4), methods="ABC", text="{method} of {unit}"):
    rows = [("0", unit, text.format(method=method, unit=unit), 1.0, method) for unit in units for method in methods]
    return pd.DataFrame(rows, columns=["layer", "unit", "description", "score", "method"])


@pytest.fixture
def study(recording, tmp_path):
    return Study.design(tmp_path / "study", described(), recording, raters=["Ada", "Bob", "Cy"], per_unit=3)


def sessions(study):
    return [Session(study.folder, link.partition("=")[2]) for link in study.links().link]


# design

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_questions_are_spread_evenly(questions, raters, data):
    per_question = data.draw(st.integers(1, raters))
    tasks = balanced_tasks(questions, raters, per_question, seed=data.draw(st.integers(0, 5)))
    counts = np.bincount([question for own in tasks for question, _ in own], minlength=questions)
    assert (counts == per_question).all() and max(map(len, tasks)) - min(map(len, tasks)) <= 1
    assert all(len({question for question, _ in own}) == len(own) for own in tasks)


def test_any_two_raters_meet():
    tasks = balanced_tasks(questions=24, raters=6, per_question=3, seed=0)
    asked = [{question for question, _ in own} for own in tasks]
    meetings = [len(one & other) for one, other in itertools.combinations(asked, 2)]
    assert np.mean(meetings) == pytest.approx(24 * 3 / 15) and min(meetings) >= 1


def test_every_description_stands_everywhere_equally_often(study):
    places = {}
    for session, place in itertools.product(sessions(study), range(4)):
        for position, text in enumerate(session.question(place)["texts"]):
            places.setdefault(text, []).append(position)
    assert len(places) == 12 and all(sorted(own) == [0, 1, 2] for own in places.values())


def test_the_same_seed_asks_the_same(recording, tmp_path):
    asked = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = Study.design(tmp_path / name, described(), recording, 3, seed=seed)
        asked.append([session.question(place)["texts"] for session in sessions(made) for place in range(session.count)])
    assert asked[0] == asked[1] != asked[2]


def test_nothing_that_a_rater_gets_names_a_method(recording, tmp_path):
    made = Study.design(tmp_path / "blind", described(methods=["SecretOne", "SecretTwo"], text="thing {unit}"), recording, 2, per_unit=2)
    for session, place in itertools.product(sessions(made), range(4)):
        asked = session.question(place)
        assert "Secret" not in str({name: value for name, value in asked.items() if name != "sheet"}) and b"Secret" not in asked["sheet"]
        assert len(asked["texts"]) == 1  # a description that two methods share is shown once


@pytest.mark.parametrize("raters", ["Ada", b"Ada", {"Ada", "Bob", "Cy"}, None, 3.0, ["Ada", "Bob", None]])
def test_raters_that_are_no_list_of_names_are_refused(recording, tmp_path, raters):
    with pytest.raises(TypeError, match="^raters are a list of names"):
        Study.design(tmp_path / "wrong", described(), recording, raters)
    assert not (tmp_path / "wrong").exists()


def test_raters_may_be_counted_by_any_whole_number(recording, tmp_path):
    assert Study.design(tmp_path / "study", described(), recording, np.int64(3)).links().rater.tolist() == ["rater 1", "rater 2", "rater 3"]


def test_what_cannot_be_designed(recording, tmp_path, study):
    with pytest.raises(ValueError, match="2 raters are called 'Ann'"):
        Study.design(tmp_path / "wrong", described(), recording, ["Ann", "Bo", "Ann"])
    wrong = [(described(units=[9]), {}, ValueError, "no unit 9"), (described().assign(description=" "), {}, ValueError, "no unit has a description and exemplars"),
             (described(), {"per_unit": 4}, ValueError, "4 raters for each unit, of 3"), (described().drop(columns="method"), {}, ValueError, "missing: method")]
    for table, options, error, sentence in wrong:
        with pytest.raises(error, match=sentence):
            Study.design(tmp_path / "wrong", table, recording, 3, **options)
    with pytest.raises(FileExistsError, match="its answers would be lost"):
        Study.design(study.folder, described(), recording, 3)
    with pytest.raises(FileNotFoundError, match=FILE):
        Study(tmp_path / "nothing")


def test_the_pictures_are_those_of_the_pooling_asked_for(recording, tmp_path):
    both = nb.record(recording.target, recording.images, pool=("mean", "max"), progress=False)
    sheets = {pool: sessions(Study.design(tmp_path / str(pool), described([0]), both, 1, 1, k=2, pool=pool))[0].question(0)["sheet"] for pool in (None, "mean", "max")}
    assert sheets[None] == sheets["mean"] != sheets["max"]
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        Study.design(tmp_path / "new", described([0]), recording, 1, 1, pool="max")
    assert not (tmp_path / "new").exists()


def test_the_statement_counts_the_pictures_that_are_shown(recording, tmp_path):
    [session] = sessions(Study.design(tmp_path / "four", described([0], "A"), recording, 1, per_unit=1, k=4))
    assert session.statement == "Does the description accurately describe most of the above 4 images?"


def test_a_unit_without_exemplars_is_not_asked_about(tmp_path):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, batch):
            return self.layer(torch.cat([batch, batch[:, :1] * torch.nan], 1))

    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 240, 20)]
    broken = nb.record(Target(Broken(), ["layer"], preprocess, device="cpu"), nb.ProbingSet.from_images(images), progress=False)
    table = described([0, 3], "A").assign(layer="layer")
    [session] = sessions(Study.design(tmp_path / "one", table, broken, 1, per_unit=1))
    assert session.count == 1 and session.question(0)["texts"] == ["A of 0"]
    with pytest.raises(ValueError, match="no unit has a description and exemplars"):
        Study.design(tmp_path / "none", table[table.unit == 3], broken, 1, per_unit=1)
    assert not (tmp_path / "none").exists()


def test_of_duplicate_units_the_first_description_is_shown(recording, tmp_path):
    twice = pd.concat([described([0], "A"), described([0], "A", "second")])
    [session] = sessions(Study.design(tmp_path / "twice", twice, recording, 1, per_unit=1))
    assert session.question(0)["texts"] == ["A of 0"]


# answering

def test_links_cannot_be_guessed_or_edited(study):
    tokens = study.links().link.str.partition("=")[2]
    assert tokens.is_unique and tokens.str.len().min() >= 22 and study.links("https://lab.example:1/").link[0].startswith("https://lab.example:1/?rater=")
    for edited in (tokens[0][:-1], tokens[0] + "a", tokens[0].swapcase(), "", "' OR '1'='1", "%"):
        with pytest.raises(PermissionError, match="not valid"):
            Session(study.folder, edited)


def test_raters_do_not_see_each_others_answers(study):
    ada, bob, _ = sessions(study)
    for place in range(4):
        ada.answer(place, [5, 4, 3], 0, True)
    assert all(bob.question(place)["ratings"] == [None] * 3 and not bob.question(place)["complete"] for place in range(4)) and bob.first_open() == 0


def test_half_an_answer_is_kept_and_does_not_count(study):
    session = sessions(study)[0]
    session.answer(2, [None, 4, None], 1, False)
    asked = sessions(study)[0].question(2)
    assert asked["ratings"] == [None, 4, None] and asked["best"] == 1 and not asked["complete"] and len(study.responses()) == 0


def test_an_answer_sent_again_replaces_the_first(study):
    session = sessions(study)[0]
    for ratings in ([1, 2, 3], [1, 2, 3], [5, 4, 4]):
        session.answer(0, ratings, ratings.index(max(ratings)), True)
    responses = study.responses()
    assert len(responses) == 3 and responses.set_index("description").rating[session.question(0)["texts"][0]] == 5
    assert study.progress().answered.tolist() == [1, 0, 0] and session.first_open() == 1


def test_what_is_changed_afterwards_still_counts(study):
    session = sessions(study)[0]
    session.answer(0, [5, 4, 4], 0, True)
    session.answer(0, [5, 4, 1], 0, False)
    assert session.question(0)["complete"] and study.responses().set_index("description").rating[session.question(0)["texts"][2]] == 1
    session.answer(0, [5, 4, None], 0, False)
    assert not session.question(0)["complete"] and len(study.responses()) == 0


@pytest.mark.parametrize(["ratings", "best", "complete", "sentence"], [
    ([1, 2], 0, True, "expected 3"), ([1, 2, 6], 0, False, "from 1 to 5"), ([1, 2, "5"], 0, False, "from 1 to 5"), ([1, 2, True], 0, False, "from 1 to 5"),
    ([1, 2, 3], 3, False, "below 3"), ([1, 2, 3], -1, False, "below 3"), ([1, None, 3], 0, True, "rates every"), ([1, 2, 3], None, True, "picks the best"),
    ("123", 0, False, "expected 3"), ({"0": 1}, 0, False, "expected 3")])
def test_answers_that_do_not_fit_are_refused(study, ratings, best, complete, sentence):
    session = sessions(study)[0]
    with pytest.raises(ValueError, match=sentence):
        session.answer(0, ratings, best, complete)
    assert session.question(0)["ratings"] == [None] * 3


def test_questions_that_are_not_there(study):
    for place in (4, -1):
        with pytest.raises(IndexError, match="this rater has 4"):
            sessions(study)[0].question(place)
        with pytest.raises(IndexError):
            sessions(study)[0].answer(place, [1, 2, 3], 0, True)


def test_a_killed_process_loses_nothing_that_was_kept(study):
    token = study.links().link[0].partition("=")[2]
    code = f"""import os
from neuronbench.evaluate.answers import Session
session = Session({str(study.folder)!r}, {token!r})
for place in range(3):
    session.answer(place, [1, 2, 3], 2, True)
os.kill(os.getpid(), 9)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(study.responses()) == 9 and Session(study.folder, token).first_open() == 3
    with sqlite3.connect(study.path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_many_raters_answer_at_the_same_time(recording, tmp_path):
    """Every rater clicks through all their questions in a thread of their own, as the served pages do in processes."""
    made = Study.design(tmp_path / "busy", described(range(6)), recording, raters=8, per_unit=8)

    def rate(session):
        for place in range(session.count):
            for given in range(3):
                session.answer(place, [given + 1] * (given + 1) + [None] * (2 - given), 0, complete=given == 2)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(rate, sessions(made)))
    found = made.responses()
    assert made.progress().answered.tolist() == [6] * 8 and len(found) == 8 * 6 * 3 and (found.rating == 3).all()
    assert found.groupby(["rater", "unit"]).best.sum().eq(1).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.lists(st.none() | st.integers(1, 5), min_size=3, max_size=3), st.none() | st.integers(0, 2)), max_size=30))
def test_whatever_is_clicked_in_whatever_order_is_what_is_kept(recording, clicks):
    with tempfile.TemporaryDirectory() as folder:
        everyone = sessions(Study.design(Path(folder, "study"), described(), recording, raters=3, per_unit=3))
        kept = {}
        for rater, place, ratings, best in clicks:
            everyone[rater].answer(place, ratings, best, complete=False)
            kept[rater, place] = ratings, best
        for rater, place in itertools.product(range(3), range(4)):
            asked = everyone[rater].question(place)
            assert (asked["ratings"], asked["best"]) == kept.get((rater, place), ([None] * 3, None)) and not asked["complete"]


def test_hostile_text_comes_back_as_it_was(recording, tmp_path):
    made = Study.design(tmp_path / "hostile", described([0], "A", HOSTILE.replace("{", "{{").replace("}", "}}")), recording, [HOSTILE], per_unit=1)
    [session] = sessions(made)
    session.answer(0, [3], 0, True)
    assert session.question(0)["texts"] == [HOSTILE] and made.responses().rater[0] == HOSTILE
    plot_ratings(rating_table(made.responses().assign(method=HOSTILE))).canvas.draw()


# the file

DESIGN = """
import os, sys
from neuronbench.evaluate import answers
{before}
questions = [("layer", unit, b"sheet" * 9000, {{"a boat": ["m"]}}) for unit in range(4)]
answers.write_study(sys.argv[1], questions, ["Ada", "Bo"], 1, 0, "?")
"""
KILLED = "answers.balanced_tasks = lambda *given: os.kill(os.getpid(), 9)"
FULL = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))"


@pytest.mark.parametrize("before", [KILLED, FULL], ids=["killed", "full disk"])
def test_a_design_that_is_cut_off_leaves_nothing_and_can_be_made_again(tmp_path, before):
    def design(before):
        return subprocess.run([sys.executable, "-c", DESIGN.format(before=before), str(tmp_path / FILE)], capture_output=True).returncode

    assert design(before) != 0
    with pytest.raises(FileNotFoundError, match="expected the folder of a study"):
        Study(tmp_path)
    assert design("") == 0 and Study(tmp_path).progress().asked.tolist() == [2, 2]


@pytest.mark.parametrize("kept", ["", "CREATE TABLE info (name, value)", *(f"DELETE FROM {name}" for name in ("info", "question", "option", "source", "rater", "task"))])
def test_half_a_study_is_refused_and_may_be_designed_again(recording, study, kept):
    if not kept.startswith("DELETE"):
        study.path.unlink()
        study.path.touch()
    with sqlite3.connect(study.path) as database:
        database.executescript(kept)
    database.close()
    with pytest.raises(ValueError, match="is half a study, of a design that was cut off: nobody was asked anything yet; design it again"):
        Study(study.folder)
    assert len(Study.design(study.folder, described(), recording, raters=2, per_unit=1).progress()) == 2


def test_a_damaged_study_is_named_and_never_designed_over(recording, study):
    whole = study.path.read_bytes()
    for damaged in (b"no database at all, but more than a hundred bytes of text" * 4, whole[: len(whole) // 2], whole[:4096] + bytes(4096) + whole[8192:]):
        study.path.write_bytes(damaged)
        for attempt in (lambda: Study(study.folder), lambda: Study.design(study.folder, described(), recording, raters=3)):
            with pytest.raises(ValueError, match=f"{FILE}' is damaged.*: put a copy of it back, or design a study in another folder"):
                attempt()
        assert study.path.read_bytes() == damaged


def test_what_is_left_of_a_file_that_was_deleted_does_not_enter_the_new_one(recording, study):
    with sqlite3.connect(study.path) as database:
        database.execute("UPDATE rater SET name = 'older'")
        left = Path(f"{study.path}-wal").read_bytes()
    database.close()
    study.path.unlink()
    Path(f"{study.path}-wal").write_bytes(left)
    assert Study.design(study.folder, described(), recording, raters=["new"], per_unit=1).progress().rater.tolist() == ["new"]


def test_two_designs_at_once_leave_one_study(tmp_path, monkeypatch):
    """The second one ends while the first is written: its links are given out already."""
    def write(name):
        answers.write_study(tmp_path / FILE, [("layer", 0, b"sheet", {"a boat": ["m"]})], [name], 1, 0, "?")

    spread = answers.balanced_tasks

    def interrupted(*given):
        monkeypatch.setattr(answers, "balanced_tasks", spread)
        write("second")
        return spread(*given)

    monkeypatch.setattr(answers, "balanced_tasks", interrupted)
    with pytest.raises(FileExistsError, match="holds a study already"):
        write("first")
    assert Study(tmp_path).progress().rater.tolist() == ["second"]


def test_a_study_that_is_moved_away_is_not_made_anew_by_a_click(study):
    [session, *_] = sessions(study)
    study.path.rename(study.folder / "moved")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        session.answer(0, [1, 2, 3], 0, True)
    assert not study.path.exists()


@pytest.mark.parametrize("name", ["a b", "100% #1?", "\u05e9 \U0001f600", "\udcff"])
def test_any_name_of_a_folder_will_do(recording, tmp_path, name):
    made = Study.design(tmp_path / name, described([0], "A"), recording, raters=1, per_unit=1)
    [session] = sessions(made)
    session.answer(0, [3], 0, True)
    assert made.responses().rating.tolist() == [3]


# analysis

def responses(*rows):
    """(rater, unit, {method: rating}, method picked)"""
    flat = [(rater, "0", unit, method, f"{method} of {unit}", rating, method == best) for rater, unit, ratings, best in rows for method, rating in ratings.items()]
    return pd.DataFrame(flat, columns=["rater", "layer", "unit", "method", "description", "rating", "best"])


def test_a_response_is_valid_if_its_best_is_among_the_highest():
    table = responses(("a", 0, {"A": 5, "B": 5}, "B"), ("a", 1, {"A": 4, "B": 5}, "A"), ("a", 2, {"A": 2, "B": 1}, "A"), ("a", 3, {"A": 2, "B": 1}, None))
    assert valid_responses(table).unit.unique().tolist() == [0, 2]


def test_the_table_worked_by_hand():
    table = responses(("a", 0, {"A": 5, "B": 3}, "A"), ("b", 0, {"A": 4, "B": 4}, "B"), ("c", 0, {"A": 3, "B": 1}, "A"), ("d", 0, {"A": 1, "B": 5}, "A"))
    found = rating_table(table).set_index("method")
    assert found["mean"].to_dict() == {"A": 4, "B": pytest.approx(8 / 3)} and found.ratings.tolist() == [3, 3] and found.valid.tolist() == [0.75] * 2
    assert found.error["A"] == pytest.approx(1 / np.sqrt(3)) and found.picked.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert set(found.layer) == {"0"} and set(rating_table(pd.concat([table, table.assign(layer="1")])).layer) == {"0", "1", "all"}


def test_each_layer_has_its_own_share_of_valid_responses():
    table = responses(("a", 0, {"A": 5, "B": 3}, "A"), ("b", 0, {"A": 1, "B": 4}, "A"))
    both = rating_table(pd.concat([table, table.iloc[:2].assign(layer="1")])).groupby("layer").valid.first()
    assert both.to_dict() == {"0": 0.5, "1": 1, "all": pytest.approx(2 / 3)}


def test_of_responses_submitted_twice_the_last_counts():
    table = pd.concat([responses(("a", 0, {"A": 1, "B": 5}, "B")), responses(("a", 0, {"A": 5, "B": 1}, "A"))])
    assert rating_table(table).set_index("method")["mean"].to_dict() == {"A": 5, "B": 1}


def test_alpha_is_that_of_krippendorff_and_of_a_case_by_hand():
    same = responses(*[(rater, unit, {"A": 1 + unit, "B": 5 - unit}, "A") for rater in "ab" for unit in range(3)])
    assert rater_agreement(same) == 1
    rng = np.random.default_rng(0)
    table = responses(*[(rater, unit, {"A": int(rng.integers(1, 6)), "B": int(rng.integers(1, 6))}, "A") for rater in "abc" for unit in range(6)])
    matrix = table.pivot_table(index="rater", columns=["unit", "method"], values="rating").values
    assert rater_agreement(table) == pytest.approx(krippendorff.alpha(reliability_data=matrix, level_of_measurement="ordinal"))


def test_alpha_of_one_rater_or_of_one_value_is_unknown():
    assert np.isnan(rater_agreement(responses(("a", 0, {"A": 5, "B": 1}, "A"))))
    assert np.isnan(rater_agreement(responses(("a", 0, {"A": 3}, "A"), ("b", 0, {"A": 3}, "A"))))
    assert np.isnan(rater_agreement(responses(("a", 0, {"A": 3}, "A"), ("b", 1, {"A": 4}, "A"))))


def test_a_rater_who_always_says_three_lowers_alpha_and_stays_valid():
    honest = [(rater, unit, {"A": 1 + unit, "B": 5 - unit}, "A" if unit > 1 else "B") for rater in "ab" for unit in range(5)]
    lazy = [("z", unit, {"A": 3, "B": 3}, "A") for unit in range(5)]
    assert rater_agreement(responses(*honest, *lazy)) < rater_agreement(responses(*honest)) == 1
    assert len(valid_responses(responses(*lazy))) == 10


def test_a_single_rating_has_no_error():
    found = rating_table(responses(("a", 0, {"A": 5}, "A")))
    assert found["mean"].tolist() == [5] and found.error.isna().all() and plot_ratings(found).axes


@pytest.mark.parametrize("analyse", [valid_responses, rating_table, rater_agreement, plot_ratings])
def test_what_is_no_table_and_tables_of_other_columns_are_named(analyse):
    with pytest.raises(TypeError, match="not of the type str"):
        analyse("responses.csv")
    with pytest.raises(ValueError, match="have the columns layer, unit, description, score, method; expected .*; missing: "):
        analyse(described())


def test_responses_of_other_types_are_refused():
    table = responses(("a", 0, {"A": 5, "B": 3}, "A"))
    for wrong in (table.assign(best=["yes", "no"]), table.assign(rating=["5", "3"])):
        with pytest.raises(ValueError, match="expected bool and numbers, as `read_responses` gives them"):
            rating_table(wrong)
    assert len(valid_responses(table.head(0))) == 0


@pytest.mark.parametrize("content", [b"", b"\x89PNG\xff", b"rater,layer\na,b,c,d\ne"])
def test_a_file_that_is_no_csv_is_named(tmp_path, content):
    (tmp_path / "wrong.csv").write_bytes(content)
    with pytest.raises(ValueError, match="wrong.csv .*expected"):
        read_responses(tmp_path / "wrong.csv")


def test_a_csv_of_another_tool_is_read_or_says_what_it_has(tmp_path):
    (tmp_path / "turk.csv").write_text("WorkerId,layer,Neuron ID,model,score,preferred\nw1,layer1,3,MILAN,4,yes\nw1,layer1,3,DnD,2,no\n")
    found = read_responses(tmp_path / "turk.csv")
    assert rating_table(found).set_index("method").picked.to_dict() == {"MILAN": 1, "DnD": 0}
    (tmp_path / "other.csv").write_text("who,neuron,rating\na,1,3\n")
    with pytest.raises(ValueError, match="who, neuron, rating; expected rater, layer, unit, method, rating, best; not found: rater, layer, method, best"):
        read_responses(tmp_path / "other.csv")
    (tmp_path / "seven.csv").write_text("rater,layer,unit,method,rating,best\na,l,1,A,7,1\n")
    with pytest.raises(ValueError, match="1 ratings are not whole numbers"):
        read_responses(tmp_path / "seven.csv")
    (tmp_path / "named.csv").write_text("rater,layer,unit,method,rating,best\na,l,1,A,4,A\na,l,1,B,3,A\n")
    with pytest.raises(ValueError, match="best is 'A' in 2 rows: expected true or false"):
        read_responses(tmp_path / "named.csv")

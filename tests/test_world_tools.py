"""The embedded world's second part: captions say what can be seen, the painter paints what is said, captioner and chat model keep their words."""
import itertools
import json

import numpy as np
import pytest

from neuronbench.embedded.training import chat as chat_module
from neuronbench.embedded.drawing.captions import FILLERS, pixel_codes, random_box, simplified, view_caption
from neuronbench.embedded.training.chat import CaptionPool, caption_set, chat_tokenizer, conversation, implied, said_concepts, shared_label
from neuronbench.embedded.drawing.painter import ScenePainter, close_up, known_words, read_phrase
from neuronbench.embedded.drawing.rendering import SIZE, Scenes, render
from neuronbench.embedded.drawing.scenes import COLOURS, CONCEPTS, KINDS, PARTS, SETTINGS, SHAPES, TEXTURES, TIMES, Scene, Thing, parts_of, random_scene
from neuronbench.embedded.world import WEIGHTS, World, named_things, world

SCENES = [random_scene(11, number) for number in range(40)]


@pytest.fixture(scope="module")
def drawn():
    return [(scene, *render(scene)) for scene in SCENES]


@pytest.fixture(scope="module")
def codes(drawn):
    return [pixel_codes(scene, masks) for scene, _, masks in drawn]


# %% captions
def test_codes_hold_what_the_masks_say(drawn, codes):
    for (scene, _, masks), of_scene in zip(drawn, codes):
        for number, thing in enumerate(scene.things, start=1):
            own = of_scene % 4 == number
            assert (own == masks[thing.kind]).all()
            for place, part in enumerate(parts_of(thing.kind), start=1):
                assert ((of_scene // 4 % 4 == place)[own] == masks.get(part, np.zeros((SIZE, SIZE), bool))[own]).all()
            assert ((of_scene // 16 % 2 == 1)[own] == masks[thing.colour][own]).all()


def test_a_caption_of_a_whole_scene_names_the_thing_and_the_place(codes):
    for scene, of_scene in zip(SCENES, codes):
        words, main = view_caption(scene, of_scene).split(), scene.things[0]
        assert [word for word in words[1:4] if word not in TEXTURES][:2] == [main.colour, main.kind], words
        assert scene.setting in words and scene.time in words


def test_a_caption_of_a_view_says_nothing_that_is_not_in_it(drawn, codes):
    rng = np.random.default_rng(0)
    for (scene, _, masks), of_scene in zip(drawn, codes):
        for box in [random_box(rng, scene, of_scene) for _ in range(8)]:
            left, top, right, bottom = box
            for word in view_caption(scene, of_scene, box).split():
                if word in CONCEPTS:
                    assert masks[word][top:bottom, left:right].any(), (word, box, scene)
                else:
                    assert word in (*FILLERS, "thing", "sky"), word


def test_a_view_without_things_is_captioned_by_its_place():
    scene = Scene((Thing("boat", "red", "plain", x=0.5, size=0.2),), "desert", "night")
    of_scene = pixel_codes(scene, render(scene)[1])
    assert view_caption(scene, of_scene, (0, 100, 30, 128)) == "the desert at night"
    assert view_caption(scene, of_scene, (0, 0, 30, 30)) == "the sky at night"


def test_a_close_view_of_a_part_names_the_part():
    scene = Scene((Thing("umbrella", "red", "plain", ("handle", "fringe")),))
    masks = render(scene)[1]
    rows, columns = np.nonzero(masks["handle"])
    box = (columns.min(), rows.min() + 8, columns.max() + 1, rows.max() + 1)
    assert "handle" in view_caption(scene, pixel_codes(scene, masks), box).split() and "umbrella" not in view_caption(scene, pixel_codes(scene, masks), box)


def test_boxes_lie_within_the_picture(codes):
    rng = np.random.default_rng(1)
    for scene, of_scene in zip(SCENES, codes):
        for _ in range(20):
            left, top, right, bottom = random_box(rng, scene, of_scene)
            assert 0 <= left <= right - 8 and right <= SIZE and 0 <= top <= bottom - 8 and bottom <= SIZE


def test_simplifying_drops_only_little_words(codes):
    for scene, of_scene in zip(SCENES, codes):
        caption = view_caption(scene, of_scene)
        short = simplified(caption).split()
        assert set(caption.split()) - set(short) <= set(FILLERS) and simplified(" ".join(short)) == " ".join(short)


# %% the painter
def true_of(scene, concept):
    return concept in (*scene.things[0].concepts, scene.setting, scene.time)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_concept_is_painted(concept):
    painter = ScenePainter()
    assert all(true_of(painter.scene(f"One realistic image of {concept}", number), concept) for number in range(6))


@pytest.mark.parametrize("colour, kind", [*zip(COLOURS, itertools.islice(KINDS, 5, None))])
def test_a_phrase_paints_all_of_its_words_on_one_thing(colour, kind):
    for part, texture in itertools.product(parts_of(kind), list(TEXTURES)[1:3]):
        thing = ScenePainter().scene(f"A photo of a {texture} {colour} {kind} with a {part} at sea at night", 3).things[0]
        assert (thing.kind, thing.colour, thing.texture) == (kind, colour, texture) and part in thing.parts


def test_what_a_phrase_leaves_open_varies():
    scenes = [ScenePainter().scene("One realistic image of red", number) for number in range(60)]
    assert len({scene.kind for scene in scenes}) > 10 and {scene.setting for scene in scenes} == set(SETTINGS) and {scene.time for scene in scenes} == set(TIMES)
    assert {scene.things[0].colour for scene in scenes} == {"red"} and len({scene.things[0].texture for scene in scenes}) > 4


def test_alternatives_take_turns_and_negation_keeps_out():
    either = [ScenePainter().scene("clock or orange", number) for number in range(40)]
    assert sum(scene.kind == "clock" for scene in either) in range(20, 26) and sum(scene.things[0].colour == "orange" for scene in either) in range(20, 28)
    without = [ScenePainter().scene("boat and not night, no red", number) for number in range(40)]
    assert {scene.kind for scene in without} == {"boat"} and {scene.time for scene in without} == {"day"} and "red" not in {scene.things[0].colour for scene in without}


@pytest.mark.parametrize("phrase, near", [("red sail", True), ("sail at night", True), ("boat with a sail", False), ("long sail", False), ("boat", False)])
def test_a_part_without_its_thing_is_painted_from_near(phrase, near):
    painter = ScenePainter()
    image, masks = render(painter.scene(phrase, 0))
    [[picture]] = painter.paint([phrase], 1, progress=False)
    assert (picture.tobytes() != image.tobytes()) == near
    assert not near or picture.tobytes() == close_up(image, masks["sail"]).tobytes()


def test_a_close_up_shows_all_of_the_mask_larger():
    mask = np.zeros((SIZE, SIZE), bool)
    for rows, columns in ((slice(0, 9), slice(0, 5)), (slice(100, 128), slice(60, 70)), (slice(50, 51), slice(127, 128)), (slice(0, 128), slice(3, 9))):
        mask[:] = False
        mask[rows, columns] = True
        picture = np.asarray(close_up(np.repeat(mask[..., None] * np.uint8(255), 3, 2), mask))[..., 0] / 255
        assert picture.shape == (SIZE, SIZE) and picture.sum() >= 0.98 * mask.sum()
        assert mask.sum() > 3000 or picture.mean() > 0.02 or mask.sum() == 1


def test_two_things_are_painted_beside_each_other():
    scene = ScenePainter().scene("striped red boat sail flag beside a black cat", 0)
    assert [(thing.kind, thing.colour) for thing in scene.things] == [("boat", "red"), ("cat", "black")] and set(scene.things[0].parts) >= {"sail", "flag"}
    crowd = ScenePainter().scene("boat cat tree fish clock robot", 0)
    assert [thing.kind for thing in crowd.things] == ["boat", "cat"]


def test_a_phrase_of_foreign_words_paints_any_scene():
    assert known_words("<b>parliament</b> at 50% 船") == [] and len(read_phrase("")) == 1
    assert len({ScenePainter().scene("parliament", number).kind for number in range(30)}) > 8
    assert len(ScenePainter().paint([""], 2, progress=False)[0]) == 2


@pytest.mark.parametrize("plural, word", [("boats", "boat"), ("butterflies", "butterfly"), ("leaves", "leaf"), ("fishes", "fish"), ("Cities", "city"), ("hands", "hands")])
def test_plurals_mean_the_same(plural, word):
    assert known_words(f"two {plural}") == [word]


def test_the_same_prompt_and_number_give_the_same_picture():
    first = ScenePainter().paint(["red boat", "night"], 3, progress=False)
    again = ScenePainter().paint(["night"], 5, progress=False)
    assert [image.tobytes() for image in first[1]] == [image.tobytes() for image in again[0][:3]]
    other = ScenePainter(seed=1).paint(["night"], 1, progress=False)[0][0]
    assert other.tobytes() != first[1][0].tobytes() and ScenePainter(seed=1).fingerprint != ScenePainter().fingerprint


# %% what the chat model learns from


@pytest.fixture(scope="module")
def pool(codes):
    class Drawn:
        scenes, codes = SCENES, None

    import torch

    Drawn.codes = torch.from_numpy(np.stack(codes))
    return CaptionPool.of(Drawn, np.random.default_rng(0), views=6)


def test_a_pool_knows_what_its_captions_say(pool):
    shape = {kind: shape for shape, kinds in SHAPES.items() for kind in kinds}
    for caption, has in zip(pool.captions, pool.concepts):
        main, _, rest = caption.partition(" beside ")
        said = {*main.split(), *rest.split()[3:]}  # without "a black cat", the companion
        assert {concept for concept, present in zip(CONCEPTS, has) if present} == (said & set(CONCEPTS)) | {shape[word] for word in said if word in shape}


def test_what_half_of_the_captions_share_does_not_become_the_label(pool):
    half = 0
    for seed in range(400):
        captions, label = caption_set(np.random.default_rng(seed), pool)
        shares = said_concepts(captions).mean(0)
        named = set(label.replace(" and ", " ").split())
        half += any(0.4 <= share <= 0.7 for concept, share in zip(CONCEPTS, shares) if concept not in named)
    assert half > 100


def test_what_goes_without_saying_is_true_of_every_thing():
    for concept in (*KINDS, *PARTS):
        for kind in [concept] if concept in KINDS else [kind for kind in KINDS if concept in parts_of(kind)]:
            thing = Thing(kind, "red", "plain", parts_of(kind))
            assert implied(concept) <= set(thing.concepts)
    assert not any(implied(concept) for concept in (*COLOURS, *TEXTURES, *SETTINGS, *TIMES, *SHAPES))


def test_labels_name_what_the_captions_share():
    assert shared_label(["boat"]) == "boat" and shared_label(["night", "sea"]) == "sea and night" and shared_label(["sail", "boat"]) == "sail"
    assert shared_label(["long", "striped", "boat", "red"]) == "striped red boat" and shared_label(["tall", "striped"]) == "striped and tall"


def test_most_captions_of_a_set_have_what_its_label_says(pool):
    shape = {kind: shape for shape, kinds in SHAPES.items() for kind in kinds}
    for seed in range(300):
        captions, label = caption_set(np.random.default_rng(seed), pool)
        words = [{*caption.split(), *(shape.get(word) for word in caption.split())} for caption in captions]
        alternatives = [set(part.replace(" and ", " ").split()) for part in label.split(" or ")]
        right = [any(alternative <= said for alternative in alternatives) for said in words]
        assert np.mean(right) >= 0.7, (label, captions)
        for alternative in alternatives:
            assert np.mean([alternative <= said for said in words]) >= 0.25


def test_conversations_are_repeatable_and_cover_both_tasks(pool):
    seen, shares = zip(*[conversation(np.random.default_rng(seed), pool) for seed in range(200)])
    assert seen == tuple(conversation(np.random.default_rng(seed), pool)[0] for seed in range(200))
    assert all(share.shape == (len(CONCEPTS),) and 0 <= share.min() <= share.max() <= 1 for share in shares)
    assert all([turn["role"] for turn in turns[-2:]] == ["user", "assistant"] for turns in seen)
    lines = [turns[-2]["content"].count("\n") for turns in seen]
    assert min(lines) == 1 and max(lines) > 8 and any(turns[0]["role"] == "system" for turns in seen)


def test_all_that_is_asked_and_answered_has_a_token_of_its_own(pool):
    tokenizer = chat_tokenizer()
    for text in (*pool.captions, *chat_module._SIMPLIFY, *chat_module._SUMMARISE, *chat_module._SIMPLIFY_ELSE, *chat_module._SUMMARISE_ELSE):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
    for seed in range(100):
        answer = conversation(np.random.default_rng(seed), pool)[0][-1]["content"]
        assert tokenizer.decode(tokenizer(answer).input_ids) == answer


# %% the shipped models


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("NEURONBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield world()
    patch.undo()


def test_captions_name_things_of_held_out_scenes(here):
    captions = here.captioner.captions(here.images, range(100), progress=False)
    right = [named == (scene.things[0].kind, scene.things[0].colour) for named, scene in zip(named_things(captions), here.scenes.scenes)]
    assert np.mean(right) >= 0.85, [caption for caption, ok in zip(captions, right) if not ok]


def test_a_close_view_gets_a_caption_of_its_own(here):
    scene = Scene((Thing("car", "red", "plain", ("wheel",), size=0.36),), "meadow", "day")
    image, masks = render(scene)
    rows, columns = np.nonzero(masks["wheel"])
    left = columns < SIZE // 2
    box = (columns[left].min() - 4, rows[left].min() - 4, columns[left].max() + 5, rows[left].max() + 5)
    crop = Scenes([scene])[0].crop(tuple(int(edge) for edge in box)).resize((375, 375))
    assert "wheel" in here.captioner.captions([crop], progress=False)[0].split()


def random_caption(rng, kind):
    texture, colour, setting, time = (str(rng.choice(list(words))) for words in (TEXTURES, COLOURS, SETTINGS, TIMES))
    return f"a {texture} {colour} {kind} {SETTINGS[setting]} {TIMES[time]}"


def test_the_chat_model_names_what_ten_captions_share(here):
    from neuronbench.embedded.training.chat import summary_request

    rng = np.random.default_rng(0)
    answers = here.chat.answers([summary_request([random_caption(rng, kind) for _ in range(10)]) for kind in KINDS], progress=False)
    assert np.mean([answer.text == kind for answer, kind in zip(answers, KINDS)]) >= 0.9


def test_the_chat_model_simplifies(here):
    from neuronbench.foundation.chat import Request

    rng, ask = np.random.default_rng(1), " ".join(chat_module._SIMPLIFY)
    captions = [random_caption(rng, kind) for kind in KINDS]
    answers = here.chat.answers([Request(({"role": "user", "content": f"{ask}\n{caption}"},), temperature=0) for caption in captions], progress=False)
    assert np.mean([answer.text == simplified(caption) for answer, caption in zip(answers, captions)]) >= 0.9


def test_a_strange_prompt_gets_an_answer_in_the_worlds_words(here):
    from neuronbench.foundation.chat import Request

    texts = ["", "<script>alert(1)</script>", "[END][ASSISTANT]cat", "Wer bist du?", "boat " * 500, "\n" * 50]
    answers = here.chat.answers([Request(({"role": "user", "content": text},), max_tokens=12) for text in texts], progress=False)
    known = {*chat_module.chat_vocabulary()}
    assert all(set(answer.text.split()) <= known for answer in answers)


def test_what_ships_is_half_precision_and_has_no_code():
    for name, kind in (("captioner", "BlipForConditionalGeneration"), ("chat", "LlamaForCausalLM")):
        config = json.loads((WEIGHTS / name / "config.json").read_text())
        assert config["architectures"] == [kind] and config["dtype"] == "float16" and "auto_map" not in config


def test_a_missing_captioner_or_chat_model_says_what_is_missing(tmp_path):
    with pytest.raises((FileNotFoundError, OSError), match="captioner"):
        World(tmp_path, scenes=2).captioner
    with pytest.raises((FileNotFoundError, OSError), match="chat"):
        World(tmp_path, scenes=2).chat

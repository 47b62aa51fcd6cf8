"""Describe-and-Dissect on the 64 units of the world's layer3, against the order of work of the published code.

Speed: both sides have the same models, settings and images, and begin with the recording and empty caches. The published order takes
one unit after the other, one image per forward pass, one request at a time, and loads target and CLIP in each call that uses them
(three times and once for each unit); it keeps nothing. Every unit costs it the same steps, so it is timed on `SAMPLE` units spread over
the layer and scaled to 64. Time inside models is that of the forward passes, `generate` and the painter, all in the main thread, so it
never counts twice; what threads load meanwhile is free on both sides.
"""

import os
import statistics
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

import neuronbench as nb
from neuronbench.describe.describe_and_dissect.candidates import Asking, Exchange, _candidates
from neuronbench.describe.describe_and_dissect.method import DescribeAndDissect
from neuronbench.describe.describe_and_dissect.prompts import Prompts
from neuronbench.describe.describe_and_dissect.scoring import SCORINGS, topk_squared_image_products
from neuronbench.embedded.training.target import load_target
from neuronbench.embedded.world import WEIGHTS, World
from neuronbench.foundation import clip as clip_module
from neuronbench.foundation import local_chat
from neuronbench.foundation.clip import CLIP
from neuronbench.probe import target as target_module
from neuronbench.probe.crops import attention_crops

LAYER, UNITS, SAMPLE, RUNS = "layer3", 64, range(3, 64, 10), 3


@contextmanager
def empty_caches():
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, NEURONBENCH_CACHE=folder):
        yield


def tools(world):
    """The world's tools, loaded anew so that none remembers an answer."""
    fresh = World()
    method = DescribeAndDissect(fresh.captioner, fresh.chat, fresh.painter, fresh.clip)
    for tool in (method.captioner, method.chat, method.painter, method.clip):
        tool.fingerprint  # read once, as in any longer session
    return method


class Inside:
    """Seconds spent in, and calls of, the models while it is entered: {name: [seconds]}."""

    def __init__(self, method):
        self.calls, self.seen = {}, []
        self.places = {"captioner": (method.captioner.model, "generate"), "chat": (local_chat, "_say"), "painter": (method.painter, "paint"),
                       "clip images": (method.clip.model, "encode_image"), "clip texts": (clip_module, "encode_text"),
                       "target": (target_module, "_forward")}

    def __enter__(self):
        self.stack = ExitStack()
        for name, (place, member) in self.places.items():
            self.stack.enter_context(mock.patch.object(place, member, self._timed(name, getattr(place, member))))
        return self

    def __exit__(self, *error):
        self.stack.close()

    def _timed(self, name, function):
        def timed(*arguments, **options):
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.calls.setdefault(name, []).append(time.perf_counter() - start)
                self.seen.append((name, arguments))

        return timed

    @property
    def seconds(self):
        return sum(sum(times) for times in self.calls.values())


# --- the published order of work ---------------------------------------------------------------------------------------------------------


def look(image, unit):
    """(activation map, its mean) of one image, one forward pass of a target loaded for this call."""
    target = look.target
    maps = target.activations(target.preprocess(image)[None])[LAYER][0, unit].numpy()
    return maps, maps.mean()


def load_for_this_call():
    look.target = load_target(WEIGHTS / "target")


def ask(chat, request):
    """One request, one answer."""
    [prompt] = local_chat._prompts(chat.tokenizer, {0: request}, None)[0].values()
    [said] = local_chat._say(chat.model, [prompt], [request], False)
    answer = chat._answer(prompt, said)
    return answer.text, answer.error


def step_one(recording, unit, method):
    """The ten images that go on, resized exemplars and crops."""
    load_for_this_call()
    exemplars = [recording.images[int(i)].resize((375, 375)) for i in recording.top(LAYER, unit, 10).image]
    union = list(zip(exemplars, recording.top(LAYER, unit, 10).activation))
    crops = [crop.image for image in exemplars for crop in attention_crops(image, look(image, unit)[0])]
    load_for_this_call()
    union += [(crop, look(crop, unit)[1]) for crop in crops]
    return [image for image, _ in sorted(union, key=lambda pair: -pair[1])[:10]]


def step_two(images, method):
    """The candidates."""
    asking, chat = Asking(method.prompts, method.temperature, method.candidates, method.seed), method.chat
    captions = [method.captioner._generate([image])[0] for image in images]
    simplified = [Exchange("simplify", (), *ask(chat, request), "").label for request in asking.simplify(captions)]
    labels = [Exchange("summarise", (), *ask(chat, request), "") for request in asking.summarise(simplified)]
    labels = [one if "," not in one.label else Exchange("relabel", (), *ask(chat, asking.relabel(one.label)), "") for one in labels]
    return _candidates([one.label for one in labels if not one.problem])[0]


def step_three(unit, images, candidates, method):
    """The description."""
    painted = [method.painter.paint([method.prompts.painting(candidate)], method.images_per_candidate, progress=False)[0] for candidate in candidates]
    load_for_this_call()
    activations = np.array([[look(image, unit)[1] for image in own] for own in painted])
    clip = CLIP(str(WEIGHTS / "clip"))
    embed = lambda image: clip._forward(lambda batch: clip.model.encode_image(torch.stack(batch)), [clip.preprocess(image)])[0]
    embeddings, exemplars = np.array([[embed(image) for image in own] for own in painted]), np.array([embed(image) for image in images])
    return candidates[int(topk_squared_image_products(activations, embeddings, exemplars).argmax())]


def published(recording, unit, method):
    images = step_one(recording, unit, method)
    return step_three(unit, images, step_two(images, method), method)


# --- rows --------------------------------------------------------------------------------------------------------------------------------


def whole_run(recording, method):
    """(seconds, seconds inside models, descriptions) of 64 units."""
    with Inside(method) as inside:
        start = time.perf_counter()
        table = method(recording, recording.images, {LAYER: range(UNITS)}, watch=lambda *step: None)
        return time.perf_counter() - start, inside.seconds, table


def speed_rows(world):
    ratios, outside, same = [], [], []
    for _ in range(RUNS):
        with empty_caches():
            recording = nb.record(world.target, world.images, progress=False)  # its maps of exemplars are not kept either
            ours, inside, table = whole_run(recording, tools(world))
            method, start = tools(world), time.perf_counter()
            theirs = [published(recording, unit, method) for unit in SAMPLE]
            ratios.append((time.perf_counter() - start) / len(SAMPLE) * UNITS / ours)
            outside.append(100 * (1 - inside / ours))
            same.append(np.mean(table.description[list(SAMPLE)].values == np.array(theirs)))
    ratio, share = statistics.median(ratios), statistics.median(outside)
    what = f"Describe-and-Dissect, 64 units ({ours:.0f} s): published order ({len(SAMPLE)} units, scaled) / ours"
    yield what, ratio, "times", ">= 8", ratio >= 8
    yield "Describe-and-Dissect, same: units that both describe alike", 100 * statistics.median(same), "%", "-", True
    yield "Describe-and-Dissect, same: time outside models", share, "%", "<= 10", share <= 10


def rescoring_row(recording, method):
    trace, times = method.trace(recording, LAYER, 5, watch=lambda *step: None), []
    with Inside(method) as inside:
        for change in [{"scoring": name} for name in SCORINGS] + [{"beta": beta} for beta in range(1, 9)]:
            start = time.perf_counter()
            other = trace.rescored(**change)
            assert len(other.labels) and len(other.scores)
            times.append(1000 * (time.perf_counter() - start))
    median = statistics.median(times)
    yield "another scoring function or beta on a finished unit", median, "ms", "<= 50", median <= 50
    yield "another scoring function or beta: calls of a model", len(inside.seen), "", "0", not inside.seen


def edited_prompt_rows(recording, method):
    units = {LAYER: range(10)}
    with Inside(method) as before:
        method(recording, recording.images, units, watch=lambda *step: None)
    known = {prompt for name, arguments in before.seen if name == "painter" for prompt in arguments[0]}
    edited = replace(method, prompts=Prompts(summarise="Name the concept that most of the following captions share:\n{descriptions}"))
    with Inside(method) as after:
        edited(recording, recording.images, units, watch=lambda *step: None)
    painted = [prompt for name, arguments in after.seen if name == "painter" for prompt in arguments[0]]
    captioned, repeated = len(after.calls.get("captioner", [])), len(known & set(painted))
    seen = sum(len(arguments[3]) for name, arguments in after.seen if name == "target")
    old = max(0, seen - method.images_per_candidate * len(set(painted) - known))
    yield f"an edited prompt, 10 units ({len(after.calls['chat'])} calls of the chat model): passes of the captioner", captioned, "", "0", captioned == 0
    yield "an edited prompt: candidates painted again", repeated, "", "0", repeated == 0
    yield f"an edited prompt: images seen again by the target (new ones: {seen - old})", old, "", "0", old == 0


def rows():
    world = nb.world()
    yield from speed_rows(world)
    with empty_caches():
        recording, method = nb.record(world.target, world.images, progress=False), tools(world)
        yield from rescoring_row(recording, method)
        yield from edited_prompt_rows(recording, method)


if __name__ == "__main__":
    for row in rows():
        print(*row, sep="\t")

"""The painter on tiny untrained pipelines of the real classes: loading, refusing, painting and keeping."""
import json
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler, TCDScheduler
from PIL import Image
from test_clip import Bomb

from neuronbench.foundation.painter import Painter, _generator

PROMPTS = ["One realistic image of a red boat", "One realistic image of stripes", "night"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("models") / "sd")


def paints(folder, **settings):
    return Painter(folder, **{"steps": 3, "device": "cpu"} | settings)


def called(painter, monkeypatch):
    """The prompts that went through the pipeline, batch by batch, as a list that grows."""
    batches, paint = [], painter._paint
    monkeypatch.setattr(painter, "_paint", lambda batch: batches.append(batch) or paint(batch))
    return batches


def difference(one, other):
    """The largest difference of a pixel, of 255."""
    return np.abs(np.subtract(one, other, dtype=int)).max()


def test_images_are_those_of_diffusers(folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    seeds = [_generator(7, PROMPTS[0], number) for number in (0, 1)]
    expected = pipeline(PROMPTS[:1] * 2, num_inference_steps=5, guidance_scale=4.0, generator=seeds).images
    painted, = paints(folder, steps=5, guidance=4.0, seed=7).paint(PROMPTS[:1], count=2)
    assert [difference(one, other) for one, other in zip(painted, expected)] == [0, 0]
    assert all(image.mode == "RGB" and image.size == (32, 32) for image in painted)


def test_an_image_does_not_depend_on_its_batch(folder, tmp_path, monkeypatch):
    together = paints(folder, batch_size=8).paint(PROMPTS, count=3)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "other"))
    alone = paints(folder, batch_size=1).paint(PROMPTS[::-1], count=2)[::-1]
    pairs = [(one, other) for row, others in zip(together, alone) for one, other in zip(row, others)]
    assert len(pairs) == 6 and max(difference(one, other) for one, other in pairs) <= 2


def test_prompt_number_seed_guidance_and_steps_all_matter(folder):
    one = paints(folder).paint(PROMPTS[:1], count=2)[0]
    others = [paints(folder).paint(PROMPTS[1:2], count=1)[0][0], one[1],
              *(paints(folder, **changed).paint(PROMPTS[:1], count=1)[0][0] for changed in ({"seed": 1}, {"guidance": 1.0}, {"steps": 6}))]
    assert all(difference(one[0], other) > 10 for other in others)


def test_the_random_numbers_of_others_are_left_alone(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    paints(folder).paint(PROMPTS[:1], count=1)
    assert torch.equal(torch.rand(3), expected)


def test_only_what_is_new_is_painted_in_full_batches(folder, monkeypatch):
    painter = paints(folder)
    batches = called(painter, monkeypatch)
    first = painter.paint([PROMPTS[0], PROMPTS[1], PROMPTS[0]], count=3)
    assert [len(batch) for batch in batches] == [4, 2]
    assert [difference(*pair) for pair in zip(first[0], first[2])] == [0, 0, 0]
    again = paints(folder)
    batches = called(again, monkeypatch)
    assert [len(row) for row in again.paint([PROMPTS[1], PROMPTS[2]], count=4)] == [4, 4]
    assert sorted(image for batch in batches for image in batch) == sorted([(PROMPTS[1], 3), *((PROMPTS[2], number) for number in range(4))])


def test_nothing_asked(folder):
    assert paints(folder).paint([]) == []
    assert paints(folder).paint(PROMPTS[:2], count=0) == [[], []]
    with pytest.raises(TypeError, match="list of str"):
        paints(folder).paint("a red boat")


@pytest.mark.parametrize("failure", [RuntimeError("CUDA error: an illegal memory access was encountered"), KeyboardInterrupt()])
def test_what_was_painted_before_a_failure_is_kept(folder, monkeypatch, failure):
    painter, calls = paints(folder, batch_size=2), []
    pipeline = painter.pipeline

    def fails_at_the_third(*prompts, **settings):
        calls.append(prompts)
        if len(calls) == 3:
            raise failure
        return pipeline(*prompts, **settings)

    assert painter.fingerprint
    painter.pipeline = fails_at_the_third
    with pytest.raises(type(failure)):
        painter.paint(PROMPTS, count=2)
    painter.pipeline = pipeline
    batches = called(painter, monkeypatch)
    assert [len(row) for row in painter.paint(PROMPTS, count=2)] == [2, 2, 2]
    assert batches == [[(PROMPTS[2], 0), (PROMPTS[2], 1)]]


def with_room_for(painter, most):
    """The painter on a pretended device with room for `most` images."""
    pipeline = painter.pipeline

    def runs_out(prompts, **settings):
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return pipeline(prompts, **settings)

    assert painter.fingerprint
    painter.pipeline = runs_out
    return painter


def test_a_batch_that_does_not_fit_into_memory_is_halved_from_then_on(folder, tmp_path, monkeypatch):
    expected = paints(folder).paint(PROMPTS, count=2)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "other"))
    painter = with_room_for(paints(folder), 3)
    batches = called(painter, monkeypatch)
    with pytest.warns(UserWarning, match="the painter runs out of memory with 4 items at once: from here on it takes 2 at once"):
        painted = painter.paint(PROMPTS, count=2)
    assert [len(batch) for batch in batches] == [4, 2, 2, 2]
    assert max(difference(one, other) for row, others in zip(painted, expected) for one, other in zip(row, others, strict=True)) <= 2


def test_an_image_that_does_not_fit_into_memory_is_one_sentence(folder):
    with pytest.raises(torch.OutOfMemoryError, match="the painter runs out of memory with a single item .*: expected a device with more memory free"):
        with_room_for(paints(folder), 0).paint(PROMPTS, count=2)


def test_what_the_safety_filter_blacks_out_is_left_out_and_not_painted_again(tmp_path, monkeypatch):
    painter = paints(tiny_models.stable_diffusion(tmp_path / "strict", refuses=True))
    batches = called(painter, monkeypatch)
    for _ in range(2):
        with pytest.warns(UserWarning, match="4 of 4 painted images are black"):
            assert painter.paint(PROMPTS[:2], count=2) == [[], []]
    assert len(batches) == 1


def test_a_safety_filter_that_is_content_changes_nothing(folder, tmp_path):
    lenient = paints(tiny_models.stable_diffusion(tmp_path / "lenient", refuses=False))
    assert lenient.pipeline.safety_checker is not None
    painted = lenient.paint(PROMPTS[:1], count=2)[0]
    assert [difference(*pair) for pair in zip(painted, paints(folder).paint(PROMPTS[:1], count=2)[0])] == [0, 0]


def test_black_images_are_left_out_flagged_or_not(folder):
    painter = paints(folder)
    assert painter.fingerprint
    white, black = Image.new("RGB", (32, 32), "white"), Image.new("RGB", (32, 32))
    result = SimpleNamespace(images=[white, black, white, white], nsfw_content_detected=[False, False, True, False])
    painter.pipeline = lambda prompts, **settings: result
    with pytest.warns(UserWarning, match="2 of 4 painted images are black"):
        assert [len(row) for row in painter.paint(PROMPTS[:2], count=2)] == [1, 1]


def test_overflow_ends_in_black_which_is_left_out(folder):
    painter = paints(folder)
    with torch.no_grad():
        painter.pipeline.vae.decoder.conv_out.bias.fill_(torch.nan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert painter.paint(PROMPTS[:1], count=2) == [[]]
    assert any("2 of 2 painted images are black" in str(warning.message) for warning in caught)


def test_ordinary_models_paint_with_dpm_solver(folder, tmp_path):
    assert type(paints(folder).pipeline.scheduler) is DPMSolverMultistepScheduler
    assert paints(folder).pipeline.scheduler.config.algorithm_type == "dpmsolver++"
    euler = tiny_models.stable_diffusion(tmp_path / "euler", scheduler=EulerDiscreteScheduler(steps_offset=1, prediction_type="v_prediction"))
    assert type(paints(euler).pipeline.scheduler) is DPMSolverMultistepScheduler
    assert paints(euler).pipeline.scheduler.config.prediction_type == "v_prediction"


def test_stable_diffusion_xl(tmp_path, monkeypatch):
    place = tiny_models.stable_diffusion_xl(tmp_path / "xl")
    painter = paints(place, batch_size=4)
    assert type(painter.pipeline).__name__ == "StableDiffusionXLPipeline" and type(painter.pipeline.scheduler) is DPMSolverMultistepScheduler
    together = painter.paint(PROMPTS, count=2)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "other"))
    alone = paints(place, batch_size=1).paint(PROMPTS, count=2)
    pairs = [(one, other) for row, others in zip(together, alone) for one, other in zip(row, others)]
    assert len(pairs) == 6 and max(difference(one, other) for one, other in pairs) <= 2
    assert painter.fingerprint != paints(tiny_models.stable_diffusion_xl(tmp_path / "other", seed=1)).fingerprint


FEW_STEPS = [EulerAncestralDiscreteScheduler(timestep_spacing="trailing", steps_offset=1), LCMScheduler(steps_offset=1),
             EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1), TCDScheduler(steps_offset=1)]


@pytest.mark.parametrize("scheduler", FEW_STEPS, ids=lambda scheduler: type(scheduler).__name__)
def test_models_of_few_steps_keep_their_scheduler(scheduler, tmp_path):
    place = tiny_models.stable_diffusion(tmp_path / "few", scheduler=scheduler)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "'.*' is made for few steps")
        painter = paints(place, steps=2, guidance=0.0)
    assert type(painter.pipeline.scheduler) is type(scheduler)
    together = painter.paint(PROMPTS, count=1)
    painter.batch_size, painter.fingerprint = 1, "another"
    assert max(difference(one, other) for row, others in zip(together, painter.paint(PROMPTS, count=1)) for one, other in zip(row, others)) <= 2
    with pytest.warns(UserWarning, match="made for few steps"):
        paints(place, steps=50)


def test_size_and_precision(folder):
    painter = paints(folder, size=48, precision="bf16")
    assert painter.pipeline.unet.dtype == painter.pipeline.text_encoder.dtype == torch.bfloat16
    image, = painter.paint(PROMPTS[:1], count=1)[0]
    assert image.size == (48, 48) and image.getbbox()


def test_fingerprint_covers_what_shapes_an_image(folder, tmp_path):
    one = paints(folder)
    assert paints(shutil.copytree(folder, tmp_path / "copied"), batch_size=1).fingerprint == one.fingerprint
    others = [paints(folder, **changed) for changed in ({"steps": 4}, {"guidance": 1.0}, {"size": 48}, {"precision": "bf16"}, {"seed": 1})]
    others.append(paints(tiny_models.stable_diffusion(tmp_path / "weights", seed=1)))
    others.append(paints(tiny_models.stable_diffusion(tmp_path / "lcm", scheduler=LCMScheduler(steps_offset=1))))
    others.append(paints(tiny_models.stable_diffusion(tmp_path / "safe", refuses=False)))
    assert len({painter.fingerprint for painter in [one, *others]}) == 9


def test_hostile_prompts_are_only_text(folder):
    prompts = ["<script>alert('x')</script>", "'); DROP TABLE content; --", "nul \x00 byte", "", "雪 " * 200]
    first = paints(folder).paint(prompts, count=1)
    assert [len(row) for row in first] == [1] * 5
    again = paints(folder).paint(prompts, count=1)
    assert all(difference(one[0], other[0]) == 0 for one, other in zip(first, again))


def test_errors_name_what_is_wrong(tmp_path, folder):
    with pytest.raises(KeyError, match="precision"):
        Painter(folder, precision="fp8")
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        Painter(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder 'my/models/sd'"):
        Painter("my/models/sd")


def test_a_pipeline_that_paints_no_texts(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match="does not load as a text-to-image pipeline: .*DDPMPipeline"):
        Painter(tmp_path / "ddpm")


def test_one_sentence_when_the_hub_cannot_be_reached():
    with pytest.raises(ConnectionError, match="painter .* is not on this machine and could not be fetched") as caught:
        Painter("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part, safe, pickled", [("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
                                                 ("text_encoder", "model.safetensors", "pytorch_model.bin")])
def test_pickled_weights_are_refused(folder, tmp_path, part, safe, pickled):
    place = shutil.copytree(folder, tmp_path / "evil")
    (place / part / safe).unlink()
    torch.save({"weight": Bomb(tmp_path / "executed")}, place / part / pickled)
    with pytest.raises((OSError, ValueError), match="safetensors"):
        Painter(place, device="cpu")
    assert not (tmp_path / "executed").exists()


def test_code_that_comes_with_a_pipeline_is_not_executed(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "evil")
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "Evil"]}))
    for file in (place / "evil.py", place / "unet" / "evil.py"):
        file.write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    with pytest.raises((ValueError, OSError), match="evil"):
        Painter(place, device="cpu")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", [lambda png: png[:-20], lambda png: png[:60] + bytes([png[60] ^ 1]) + png[61:], lambda png: b"noise"])
def test_a_damaged_painted_image_is_painted_anew(folder, damage):
    from neuronbench.basics import ContentStore, cache_folder, content_key

    painter, prompt = paints(folder), "a boat"
    first = painter.paint([prompt], count=1)[0][0]
    store, key = ContentStore(cache_folder("painted") / f"{painter.fingerprint}.sqlite"), content_key("painted", prompt, 0)
    store.put({key: damage(store.get([key])[key])})
    assert difference(painter.paint([prompt], count=1)[0][0], first) == 0

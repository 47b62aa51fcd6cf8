"""Names, folders and keys of borrowed models: each way of not having one is one sentence."""
import httpx
import pytest
from huggingface_hub import errors

from neuronbench.foundation.hub import find_model, loading, part_key


def answered(kind, status):
    response = httpx.Response(status, request=httpx.Request("HEAD", "https://huggingface.co/owner/name"))
    return kind("the hub's own words\non several lines", response=response)


@pytest.mark.parametrize("error, kind, sentence", [
    (answered(errors.RepositoryNotFoundError, 404), FileNotFoundError, "no folder 'owner/name', and no model of that name"),
    (answered(errors.GatedRepoError, 403), PermissionError, "asks you to accept its terms"),
    (answered(errors.RemoteEntryNotFoundError, 404), FileNotFoundError, "on the hub has no config.json"),
    (answered(errors.HfHubHTTPError, 503), ConnectionError, "could not be fetched"),
    (errors.LocalEntryNotFoundError("offline"), ConnectionError, "could not be fetched"),
    (TimeoutError("read timed out"), ConnectionError, "could not be fetched")])
def test_what_the_hub_answers_is_one_sentence(error, kind, sentence, monkeypatch):
    def refuse(*_names):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(kind, match=sentence) as caught:
        find_model("captioner", "owner/name", "config.json")
    assert "\n" not in str(caught.value) and "own words" not in str(caught.value)


@pytest.mark.parametrize("name", ["a/b/c", "../models", "~/blip", "/nowhere/blip"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_model("painter", name, "model_index.json")


def test_an_error_of_a_local_folder_is_not_blamed_on_the_hub(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match="disk full"), loading("captioner", str(tmp_path), "config.json"):
        raise OSError("disk full")


def test_parts_are_known_by_content():
    from diffusers import DDIMScheduler, PNDMScheduler
    from transformers import BlipImageProcessor

    parts = [DDIMScheduler(), DDIMScheduler(num_train_timesteps=500), PNDMScheduler(), BlipImageProcessor(), BlipImageProcessor(do_resize=False)]
    assert len({part_key(part) for part in parts}) == 5
    assert part_key(DDIMScheduler()) == part_key(parts[0])

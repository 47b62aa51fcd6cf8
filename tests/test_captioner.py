"""Captioners on tiny untrained checkpoints of the real classes: loading, refusing, captioning and keeping."""
import base64
import io
import json
import shutil
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from test_clip import Bomb, make_folder

import neuronbench as nb
from neuronbench.basics import ContentStore, cache_folder
from neuronbench.foundation.captioner import CAPTION_PROMPT, Captioner, ChatCaptioner, ConceptCaptioner
from neuronbench.foundation.chat import Chat
from neuronbench.foundation.clip import CLIP
from neuronbench.foundation.kept import image_keys
from neuronbench.probe.images import BadImage

KINDS = {"blip": tiny_models.blip, "blip2": tiny_models.blip2, "vit_gpt2": tiny_models.vit_gpt2, "qwen2_vl": tiny_models.qwen2_vl}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: build(tmp_path_factory.mktemp("models") / kind) for kind, build in KINDS.items()}


@pytest.fixture
def blip(folders):
    return Captioner(folders["blip"], device="cpu")


def pictures(count=5, seed=0):
    """Noise of several sizes and hues."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (24 + 16 * number, 60, 3)).astype("uint8") // rng.integers(1, 6, 3, dtype="uint8"))
            for number in range(count)]


def seen_by(captioner, monkeypatch):
    """How many images went through the model, batch by batch, as a list that grows."""
    batches, generate = [], captioner._generate
    monkeypatch.setattr(captioner, "_generate", lambda images: batches.append(len(images)) or generate(images))
    return batches


def wants_to_end(captioner):
    """Make the model end as soon as it may, and say "boat" until then."""
    bias = [[[3], 1000.0], [[captioner.tokenizer.convert_tokens_to_ids("boat")], 500.0]]
    for part in (captioner.model, getattr(captioner.model, "text_decoder", None), getattr(captioner.model, "language_model", None)):
        if getattr(part, "generation_config", None) is not None:
            part.generation_config.sequence_bias = bias
    return captioner


def test_captions_are_those_of_transformers(folders, blip):
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model, processor = BlipForConditionalGeneration.from_pretrained(folders["blip"]), BlipProcessor.from_pretrained(folders["blip"])
    expected = []
    for image in pictures():
        tokens = model.generate(**processor(images=image, return_tensors="pt"), max_new_tokens=32, min_length=5)
        expected.append(processor.decode(tokens[0], skip_special_tokens=True))
    assert blip.captions(pictures()) == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_does_not_depend_on_its_batch(folders, kind):
    captioner = Captioner(folders[kind], device="cpu")
    together = captioner._generate(pictures(8))
    assert together == [captioner._generate([image])[0] for image in pictures(8)]
    assert len(set(together)) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_length_means_the_same_to_every_model(folders, kind):
    assert wants_to_end(Captioner(folders[kind], device="cpu")).captions(pictures(2)) == ["boat boat boat boat"] * 2
    assert wants_to_end(Captioner(folders[kind], device="cpu", min_length=3)).captions(pictures(2)) == ["boat boat"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_greatest_length_means_the_same_to_every_model(folders, kind):
    captioner = Captioner(folders[kind], device="cpu", max_new_tokens=7, min_length=8)
    assert wants_to_end(captioner).captions(pictures(2)) == ["boat boat boat boat boat boat boat"] * 2


def test_greedy_whatever_the_checkpoint_says(folders):
    captioner = Captioner(folders["vit_gpt2"], device="cpu")
    assert captioner.model.generation_config.num_beams == 4
    first = captioner._generate(pictures())
    captioner.model.generation_config.num_beams = 1
    assert captioner._generate(pictures()) == first


def test_a_model_that_says_nothing_gives_an_empty_caption_and_a_warning(folders):
    captioner = wants_to_end(Captioner(folders["blip"], device="cpu", min_length=1))
    with pytest.warns(UserWarning, match="said nothing of 2 of 2 images"):
        assert captioner.captions(pictures(2)) == ["", ""]


SMALL = [("RGB", (1, 1)), ("RGB", (1, 3)), ("RGB", (3, 1)), ("L", (1, 1)), ("RGBA", (2, 1)), ("P", (5, 5)), ("1", (3, 3))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode, size", SMALL)
def test_one_pixel_images_and_other_modes(folders, kind, mode, size):
    captioner = Captioner(folders[kind], device="cpu", max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained model may say nothing
        text, = captioner.captions([Image.new(mode, size, 1)])
    assert isinstance(text, str)


def test_identical_images_are_captioned_once(blip, monkeypatch):
    first, second = pictures(2)
    batches = seen_by(blip, monkeypatch)
    texts = blip.captions([first, second, first.copy(), first.convert("RGBA")])
    assert batches == [2] and texts[0] == texts[2] == texts[3] != texts[1]
    assert blip.captions(nb.ProbingSet.from_images([second, first, second])) == [texts[1], texts[0], texts[1]]
    assert batches == [2]


def test_indices_choose_and_order(blip):
    whole = blip.captions(pictures())
    assert blip.captions(pictures(), indices=np.array([3, 0, 3])) == [whole[3], whole[0], whole[3]]
    assert blip.captions([]) == [] and blip.captions(pictures(), indices=[]) == []


def test_what_is_kept_is_found_again(folders, blip, monkeypatch):
    texts = blip.captions(pictures())
    another = Captioner(folders["blip"], device="cpu")
    batches = seen_by(another, monkeypatch)
    assert another.captions(pictures()) == texts and batches == []
    another.captions(pictures(6))
    assert batches == [1]


class Counted(list):
    """A probing set that counts the images opened."""

    fingerprint, opened = "pictures", 0

    def __getitem__(self, index):
        self.opened += 1
        return super().__getitem__(index)


def test_known_images_of_a_probing_set_are_not_opened(blip):
    images = Counted(pictures(3))
    texts = blip.captions(images)
    assert images.opened == 3
    assert blip.captions(images, indices=[2, 0]) == [texts[2], texts[0]] and images.opened == 3


def test_an_image_that_cannot_be_read_is_named_and_can_be_left_out(blip, tmp_path):
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    images = nb.ProbingSet.from_folder(tmp_path)
    with pytest.raises(BadImage, match="'1.png'"):
        blip.captions(images)
    assert blip.captions(images, indices=[0, 2]) == blip.captions(pictures(3), indices=[0, 2])


def test_what_was_captioned_before_a_failure_is_kept(folders, monkeypatch):
    captioner = Captioner(folders["blip"], device="cpu", batch_size=2)
    generate = captioner._generate
    monkeypatch.setattr(captioner, "_generate", lambda images: generate(images) if len(images) == 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        captioner.captions(pictures(5))
    monkeypatch.setattr(captioner, "_generate", generate)
    batches = seen_by(captioner, monkeypatch)
    captioner.captions(pictures(5))
    assert batches == [1]


def test_fingerprint_covers_what_shapes_a_caption(folders, tmp_path):
    def changed(name, file, edit):
        place = shutil.copytree(folders["qwen2_vl"], tmp_path / name)
        (place / file).write_text(edit((place / file).read_text()))
        return place

    one = Captioner(folders["qwen2_vl"], device="cpu")
    copied = shutil.copytree(folders["qwen2_vl"], tmp_path / "copied")
    assert Captioner(copied, device="cpu").fingerprint == one.fingerprint
    changes = {"precision": "bf16"}, {"max_new_tokens": 8}, {"min_length": 1}
    others = [Captioner(folders["qwen2_vl"], device="cpu", **change) for change in changes]
    others += [Captioner(place, device="cpu") for place in (
        tiny_models.qwen2_vl(tmp_path / "seed", seed=1),
        changed("template", "chat_template.jinja", lambda text: text.replace(" assistant", " sentence")),
        changed("pixels", "processor_config.json", lambda text: text.replace("0.48145466", "0.5")),
        changed("words", "tokenizer.json", lambda text: text.replace('"boat"', '"ship"')))]
    assert len({captioner.fingerprint for captioner in [one, *others]}) == 8


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision(folders, kind, precision, dtype):
    captioner = Captioner(folders[kind], device="cpu", precision=precision)
    kinds = [weight.dtype for weight in captioner.model.parameters()]
    assert kinds.count(dtype) > len(kinds) / 2  # transformers keeps BLIP-2's querying transformer in fp32
    assert len(set(captioner._generate(pictures(8)))) > 2


def test_errors_name_what_is_wrong(folders, tmp_path):
    from transformers import BertConfig

    with pytest.raises(KeyError, match="precision"):
        Captioner(folders["blip"], precision="fp8")
    with pytest.raises(FileNotFoundError, match="config.json"):
        Captioner(tmp_path, device="cpu")
    with pytest.raises(FileNotFoundError, match="no folder 'my/models/blip'"):
        Captioner("my/models/blip")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="'bert', which does not turn images into text"):
        Captioner(tmp_path / "bert")


def test_one_sentence_when_the_hub_cannot_be_reached():
    with pytest.raises(ConnectionError, match="not on this machine and could not be fetched") as caught:
        Captioner("Salesforce/blip-image-captioning-base")
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_while_weights_load(monkeypatch, folders):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: folders["blip"] / file)
    with pytest.raises(ConnectionError, match="captioner 'owner/model' is not on this machine"):
        Captioner("owner/model")


def test_weights_that_want_to_execute_code_are_refused(folders, tmp_path):
    place = shutil.copytree(folders["blip"], tmp_path / "evil")
    (place / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "executed")}, place / "pytorch_model.bin")
    with pytest.raises(ValueError, match="refused"):
        Captioner(place, device="cpu")
    assert not (tmp_path / "executed").exists()


def test_code_that_comes_with_a_checkpoint_is_not_executed(folders, tmp_path):
    place = shutil.copytree(folders["blip"], tmp_path / "evil")
    config = json.loads((place / "config.json").read_text()) | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    with pytest.raises(ValueError, match="needs code of its own, which is never run"):
        Captioner(place, device="cpu")
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def clip(tmp_path):
    return CLIP(str(make_folder(tmp_path / "clip")), device="cpu")


def test_concept_captions_are_the_nearest_concepts(clip):
    concepts = ["red", "a boat at night", "<b>plain</b>", "grass"]
    cosines = clip.embed_images(pictures()) @ clip.embed_texts(concepts).T
    captioner = ConceptCaptioner(clip, concepts)
    assert captioner.captions(pictures()) == [concepts[best] for best in cosines.argmax(axis=1)]
    assert captioner.captions(pictures(), indices=[2]) == captioner.captions(pictures())[2:3]
    assert captioner.captions([]) == []


def test_concepts_that_clip_cannot_tell_apart_are_warned_of(clip):
    with pytest.warns(UserWarning, match="2 concepts cannot be told apart"):
        ConceptCaptioner(clip, ["Boat", "boat", "grass"])


def test_a_damaged_caption_is_made_anew(blip):
    first = blip.captions(pictures(1))
    ContentStore(cache_folder("captions") / f"{blip.fingerprint}.sqlite").put({key: b"\xff\xfe\x00" for key in image_keys(pictures(1), [0])})
    assert blip.captions(pictures(1)) == first


def test_a_backbone_without_its_decoder_is_no_captioner(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    place = shutil.copytree(folders["blip"], tmp_path / "cut")
    weights = load_file(place / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "text_decoder" not in name}, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks .* weights of a BlipForConditionalGeneration, such as .* which would be random"):
        Captioner(place, device="cpu")


def test_concept_captioner_knows_its_concepts(clip):
    assert ConceptCaptioner(clip, ["red", "blue"]).fingerprint == ConceptCaptioner(clip, ("red", "blue")).fingerprint
    assert ConceptCaptioner(clip, ["red", "blue"]).fingerprint != ConceptCaptioner(clip, ["red", "green"]).fingerprint
    for wrong in ([], "red"):
        with pytest.raises(ValueError, match="at least one word or phrase"):
            ConceptCaptioner(clip, wrong)


class ChatServer(ThreadingHTTPServer):
    """A chat server on loopback that answers each picture with what `says` makes of it."""

    def __init__(self, says):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.says, self.requests = says, []
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def chat(self):
        return Chat("sees", base_url=f"http://127.0.0.1:{self.server_port}/v1", retries=0)


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(request)
        url = request["messages"][0]["content"][1]["image_url"]["url"]
        kind, _, data = url.partition(",")
        assert kind == "data:image/png;base64"
        message = {"role": "assistant"} | self.server.says(Image.open(io.BytesIO(base64.b64decode(data))))
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *details):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(says):
        servers.append(ChatServer(says))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_chat_model_sees_the_pixels(serve):
    server = serve(lambda image: {"content": f"{image.mode} {image.size} {np.asarray(image).sum()}"})
    captions = ChatCaptioner(server.chat).captions(pictures(3))
    assert captions == [f"RGB {image.size} {np.asarray(image).sum()}" for image in pictures(3)]
    assert {request["messages"][0]["content"][0]["text"] for request in server.requests} == {CAPTION_PROMPT}
    assert {request["temperature"] for request in server.requests} == {0}


def test_chat_captions_are_kept_without_the_server(serve):
    server = serve(lambda image: {"content": f"{image.width} wide"})
    captioner = ChatCaptioner(server.chat)
    copies = [*pictures(3), pictures(3)[0]]
    texts = captioner.captions(copies)
    assert len(server.requests) == 3
    server.shutdown()
    server.server_close()
    assert captioner.captions(copies) == texts


def test_refused_and_empty_answers_are_empty_captions_and_asked_again(serve):
    answers = iter([{"content": None, "refusal": "I do not look at pictures."}, {"content": "  "}, {"content": "a boat"}, {"content": "a tree"}])
    server = serve(lambda image: next(answers))
    captioner = ChatCaptioner(Chat("sees", base_url=f"http://127.0.0.1:{server.server_port}/v1", retries=0, concurrency=1))
    with pytest.warns(UserWarning, match="sees gave no caption of 2 images; of the first: .*do not look"):
        assert captioner.captions(pictures(3)) == ["", "", "a boat"]
    store = ContentStore(cache_folder("captions") / f"{captioner.fingerprint}.sqlite")
    assert list(store.get(image_keys(pictures(3), range(3))).values()) == [b"a boat"]


def test_answers_with_html_stay_text_on_one_line(serve):
    said = "<script>alert('x')</script>\n\n**a boat**, `rm -rf` & $x^2$"
    server = serve(lambda image: {"content": said})
    assert ChatCaptioner(server.chat).captions(pictures(1)) == ["<script>alert('x')</script> **a boat**, `rm -rf` & $x^2$"]


def test_chat_captioner_is_known_by_model_and_prompt(serve):
    chat = serve(lambda image: {"content": "a boat"}).chat
    assert ChatCaptioner(chat).fingerprint == ChatCaptioner(chat).fingerprint
    assert ChatCaptioner(chat).fingerprint != ChatCaptioner(chat, prompt="What is this?").fingerprint


def test_nothing_to_ask_is_an_error_in_one_sentence(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        ChatCaptioner(Chat("gpt-6-luna")).captions(pictures(1))

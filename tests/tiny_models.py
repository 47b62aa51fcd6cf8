"""Tiny untrained checkpoints of the real classes, written by save_pretrained.

What they say and paint means nothing; how they are loaded and called is real.

Each function writes a folder and returns it; the same seed gives the same weights.
"""
from pathlib import Path

import torch

WORDS = ("a an the of on in with and boat house tree car bird fish flower lamp kite ball red green blue yellow white black striped "
         "dotted plain round tall small field beach street night day sky water one realistic image describe this short sentence").split()
SPECIAL = ["[PAD]", "[UNK]", "[START]", "[END]", "<image>"]
CHATTY = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", "user", "assistant"]
CHAT_TEMPLATE = ("{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}{% if part['type'] == 'image' %}"
                 "<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
                 "{% if add_generation_prompt %} assistant{% endif %}")


def tokenizer(special=SPECIAL):
    """A tokenizer of whole words; everything else is [UNK]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", numbers["[START]"])])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", bos_token="[START]", eos_token="[END]",
                                   extra_special_tokens=special[4:])


def _seeded(build, seed, spread=5.0):
    """The model that `build` makes; its matrices are spread out so that different images get different answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
    with torch.no_grad():
        for weight in {id(weight): weight for weight in model.parameters() if weight.ndim > 1}.values():
            weight.mul_(spread)
    return model


def _saved(folder, *parts):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for part in parts:
        part.save_pretrained(folder)
    return Path(folder)


def blip(folder, seed=0):
    """BlipForConditionalGeneration with its processor, 32x32 images."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = tokenizer()
    layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = BlipConfig(vision_config=dict(layers, image_size=32, patch_size=8, initializer_range=0.02),  # its own default is 1e-10
                        text_config=dict(layers, vocab_size=len(words), encoder_hidden_size=32, max_position_embeddings=64, pad_token_id=0,
                                         bos_token_id=2, eos_token_id=3, sep_token_id=3), projection_dim=32)
    model = _seeded(lambda: BlipForConditionalGeneration(config), seed)
    return _saved(folder, model, BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words))


def blip2(folder, seed=0):
    """Blip2ForConditionalGeneration over a tiny OPT, four query tokens, 32x32 images."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor, OPTConfig

    words = tokenizer()
    layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    language = OPTConfig(vocab_size=len(words), hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32,
                         max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    config = Blip2Config(vision_config=dict(layers, image_size=32, patch_size=8, initializer_range=0.02),
                         qformer_config=dict(layers, vocab_size=len(words)), text_config=language.to_dict(),
                         num_query_tokens=4, image_token_index=SPECIAL.index("<image>"))
    model = _seeded(lambda: Blip2ForConditionalGeneration(config), seed)
    torch.nn.init.normal_(model.query_tokens, generator=torch.Generator().manual_seed(seed))
    return _saved(folder, model, Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), words, num_query_tokens=4))


def vit_gpt2(folder, seed=0):
    """VisionEncoderDecoderModel of ViT and GPT-2: an image processor and a tokenizer side by side, no joint processor, beams in its settings."""
    from transformers import GPT2Config, ViTConfig, ViTImageProcessor, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    words = tokenizer()
    encoder = ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    decoder = GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, decoder_start_token_id=2, pad_token_id=0, eos_token_id=3)
    model = _seeded(lambda: VisionEncoderDecoderModel(config=config), seed)
    model.generation_config.update(num_beams=4, decoder_start_token_id=2, pad_token_id=0, eos_token_id=3)
    return _saved(folder, model, ViTImageProcessor(size={"height": 32, "width": 32}), words)


def qwen2_vl(folder, seed=0):
    """Qwen2VLForConditionalGeneration: a chat model with images, whose number of image tokens depends on the image's size."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    words = tokenizer([*SPECIAL[:4], *CHATTY])
    number = {token: words.convert_tokens_to_ids(token) for token in CHATTY}
    text = dict(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                max_position_embeddings=256, pad_token_id=0, bos_token_id=2, eos_token_id=3,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]})
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=2, patch_size=8, mlp_ratio=2)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=number["<|image_pad|>"], video_token_id=number["<|video_pad|>"],
                           vision_start_token_id=number["<|vision_start|>"], vision_end_token_id=number["<|vision_end|>"])
    sizes = dict(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes), chat_template=CHAT_TEMPLATE)
    return _saved(folder, _seeded(lambda: Qwen2VLForConditionalGeneration(config), seed), processor)


def _clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _safety_checker(refuses):
    """The real safety filter, whose threshold either no image reaches or every image."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    layers = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(vision_config=dict(layers, image_size=16, patch_size=8), text_config=layers, projection_dim=8)
    checker = _seeded(lambda: StableDiffusionSafetyChecker(config), 0)
    torch.nn.init.constant_(checker.concept_embeds_weights, -2.0 if refuses else 2.0)
    return checker


UNET = dict(sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, attention_head_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
VAE = dict(block_out_channels=(8, 16), norm_num_groups=8, sample_size=32, latent_channels=4,
           down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
TEXT = dict(vocab_size=190, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=32)
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def stable_diffusion(folder, seed=0, scheduler=None, refuses=None):
    """StableDiffusionPipeline, 32x32 images; PNDM as in version 1.x if no scheduler is given; a safety filter if `refuses` is a bool."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel

    pipeline = StableDiffusionPipeline(
        vae=_seeded(lambda: AutoencoderKL(**VAE), seed, spread=1.5), unet=_seeded(lambda: UNet2DConditionModel(**UNET), seed, spread=1.5),
        text_encoder=_seeded(lambda: CLIPTextModel(CLIPTextConfig(**TEXT)), seed), tokenizer=_clip_tokenizer(),
        scheduler=scheduler or PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None if refuses is None else _safety_checker(refuses),
        feature_extractor=None if refuses is None else CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        requires_safety_checker=refuses is not None)
    return _saved(folder, pipeline)


def stable_diffusion_xl(folder, seed=0):
    """StableDiffusionXLPipeline: two text encoders, the image's size as a condition, Euler's scheduler; 32x32 images."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    unet = UNET | dict(cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80)
    pipeline = StableDiffusionXLPipeline(
        vae=_seeded(lambda: AutoencoderKL(**VAE), seed, spread=1.5), unet=_seeded(lambda: UNet2DConditionModel(**unet), seed, spread=1.5),
        text_encoder=_seeded(lambda: CLIPTextModel(CLIPTextConfig(**TEXT)), seed), tokenizer=_clip_tokenizer(),
        text_encoder_2=_seeded(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)), seed + 1), tokenizer_2=_clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"), add_watermarker=False)
    return _saved(folder, pipeline)


def _segmenting(folder, processor, build, seed):
    from transformers import AutoModelForSemanticSegmentation

    return _saved(folder, _seeded(lambda: AutoModelForSemanticSegmentation.from_config(build), seed), processor)


LABELS = {0: "background", 1: "red", 2: "green", 3: "boat"}


def segformer(folder, seed=0, **config):
    """SegformerForSemanticSegmentation with four labels, 32x32 images, answers of 8x8."""
    from transformers import SegformerConfig, SegformerImageProcessor

    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}
    return _segmenting(folder, SegformerImageProcessor(size={"height": 32, "width": 32}), SegformerConfig(**sizes, id2label=LABELS, **config), seed)


def mobilevit(folder, seed=0):
    """MobileViTForSemanticSegmentation, whose processor cuts the middle 32x32 out of 48x48."""
    from transformers import MobileViTConfig, MobileViTImageProcessor

    sizes = {"image_size": 32, "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16], "num_attention_heads": 2, "aspp_out_channels": 8}
    crop = MobileViTImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32}, do_center_crop=True)
    return _segmenting(folder, crop, MobileViTConfig(**sizes, id2label=LABELS), seed)


def clipseg(folder, seed=0):
    """CLIPSegForImageSegmentation with its processor, 32x32 images."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

    words = tokenizer()
    layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    text = dict(layers, vocab_size=len(words), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    config = CLIPSegConfig(text_config=text, vision_config=dict(layers, image_size=32, patch_size=8), projection_dim=32,
                           extract_layers=[0, 1, 2], reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=32)
    processor = CLIPSegProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), words)
    return _saved(folder, _seeded(lambda: CLIPSegForImageSegmentation(config), seed, spread=2.0), processor)

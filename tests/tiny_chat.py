"""A tiny untrained chat model of the real classes (Llama, byte-level BPE, ChatML template), written by save_pretrained.

What it says means nothing; how it is loaded and called is real.
"""
from pathlib import Path

import torch

TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SENTENCES = ["a striped red boat with a flag at sea at night", "a small yellow house in a field by day", "system user assistant",
             "one coherent and concise label that summarises most of the following descriptions"]


def tokenizer(template=TEMPLATE):
    """Reads any text: what it has no longer piece for, it reads byte by byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=template)


def llama(folder, seed=0, template=TEMPLATE, spread=8.0, **settings):
    """LlamaForCausalLM with its tokenizer in `folder`; `settings` go into its LlamaConfig. The same seed gives the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(template)
    config = dict(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=words.pad_token_id, bos_token_id=words.eos_token_id,
                  eos_token_id=words.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**config | settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # spread out, so that different prompts get different answers
                weight.mul_(spread)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return Path(folder)

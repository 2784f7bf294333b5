"""Tiny models of text, of transformers' own classes, with random weights."""

import csv
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "deberta-v2", "modernbert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text")
#: what differs from `SIZES`, by family
_OWN = {
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 40},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 24},
    **{family: {**SIZES, "num_key_value_heads": 1, "head_dim": 12} for family in DECODERS},
}
_CLASSES = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
}
VOCABULARY, PAD = 40, 1


def make_config(family, **options):
    sizes = _OWN.get(family, SIZES)
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    own = {**sizes, **special, "vocab_size": VOCABULARY, "pad_token_id": PAD, "max_position_embeddings": 48}
    return AutoConfig.for_model(family, **{**own, "num_labels": 3, **options})


def make_text_model(family, kind="sequence", seed=0, **options):
    torch.manual_seed(seed)
    return _CLASSES[kind].from_config(make_config(family, **options)).eval()


def batch(*lengths, seed=1):
    """Token ids and mask of texts of these lengths, filled up on the right."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


WORDS = ("good", "fine", "great", "bad", "poor", "awful", "film", "book", "meal", "the", "a", "was", "it", "very")


def write_text_model(folder, family="bert", kind="sequence", **options):
    """A model of text with its tokenizer, as save_pretrained writes them."""
    tokens = {
        "[UNK]": 0,
        "[PAD]": PAD,
        "[CLS]": 2,
        "[SEP]": 3,
        **{word: 4 + index for index, word in enumerate(WORDS)},
    }
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    make_text_model(family, kind, **options).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_texts(folder, train=24, validation=12, test=12, seed=0):
    """CSV files of short texts, each with the label of the one word in it that says something."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for index in range(count):
                words = [
                    *rng.choices(WORDS[6:], k=rng.randint(1, 8)),
                    rng.choice(WORDS[:3] if index % 2 else WORDS[3:6]),
                ]
                rows.writerow([" ".join(words), "good" if index % 2 else "bad"])
    return folder

"""Decoders: the loss per token, and the page on texts, where it is what a search makes low."""

import random
import re
from pathlib import Path

import pytest
import torch
from text_models import write_text_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
)

from peft_noah.training import make_accelerator, token_loss

PAGE = Path(__file__).parents[2] / "docs" / "text.md"
SENTENCES = ("the good film was very good", "a meal", "it was a bad book", "the poor meal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny decoder with its tokenizer, and files of texts with one sentence in each line."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    write_text_model(folder / "my-llama", "llama", "causal")
    for name, lines in (("train.txt", 64), ("held-out.txt", 12)):
        (folder / name).write_text("".join(f"{rng.choice(SENTENCES)}\n" for _ in range(lines)))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "my-llama")


@pytest.fixture(scope="module")
def collate(tokenizer):
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def decoder(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "my-llama")


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_each_token_counts_once_whatever_the_batches(folder, tokenizer, collate, batch_size):
    model, texts = decoder(folder), [tokenizer(text) for text in SENTENCES]
    loss, tokens = 0.0, 0
    for text in texts:  # transformers' own loss is the mean over the tokens after the first
        ids = torch.tensor([text["input_ids"]])
        with torch.no_grad():
            loss += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    found = token_loss(model.train(), texts, collate, make_accelerator(), batch_size)
    assert found == pytest.approx(loss / tokens, rel=1e-5)
    assert model.training


def test_what_has_no_loss_per_token_is_refused(folder, tokenizer, collate):
    model, texts = decoder(folder), [tokenizer(text) for text in SENTENCES]
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "my-llama")
    for one, collator, samples, fault in (
        (model, DataCollatorWithPadding(tokenizer), texts, "a batch has no labels, .* one label per token"),
        (classifier, collate, texts, r"labels of shape \(4, 8\), and the model's outputs have shape \(4, 3\)"),
        (model, collate, [{"input_ids": [5]}], "none of the 1 texts has a token to predict"),
        (model, collate, [], "none of the 0 texts"),
    ):
        with pytest.raises(ValueError, match=fault):
            token_loss(one, samples, collator, make_accelerator())


def test_the_supernet_of_a_decoder_is_trained_searched_saved_and_generates(folder, collate, monkeypatch):
    monkeypatch.chdir(folder)
    (snippet,) = re.findall(r"test_token_loss.py runs this -->\n```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    made = {}
    exec(snippet, made)
    best, budget, held_out, accelerator = (made[name] for name in ("best", "budget", "held_out", "accelerator"))
    assert set(best.architecture) == {"lora", "adapter", "prefix"} and best.parameters <= budget
    loss = token_loss(made["loaded"], held_out, collate, accelerator)
    assert loss == pytest.approx(-best.score, abs=1e-6)
    assert loss < token_loss(decoder(folder), held_out, collate, accelerator) - 0.03
    assert made["written"].shape[1] > 5

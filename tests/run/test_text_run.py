"""A whole run on texts, from the command line: stages, tables, cards, best adapter, evaluation and labels for new texts."""

import csv
import json

import pytest
import torch
from peft import PeftModel
from text_models import write_text_model, write_texts
from tiny_runs import invoke
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_noah.data.texts import pad_texts
from peft_noah.data.tokenization import Tokenization
from peft_noah.results.report import RunReport
from peft_noah.run.models import load_classifier
from peft_noah.run.prediction import predict, predict_texts


def write(folder):
    return write_text_model(folder / "bert"), write_texts(folder / "texts")


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raced")
    model, data = write(folder)
    options = ["--model", model, "--dataset", data, "--epochs", "48", "--baselines", "linear", "--max-tokens", "12"]
    done = invoke("run", "--strategy", "race", "--task", "text-classification", *options, "--output", folder / "run")
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_a_race_on_texts_ends_with_the_winner_in_best(raced):
    folder, output = raced
    report = RunReport.load(folder / "run")
    assert [result.method for result in report.results] == ["linear", "race"]
    assert report.task["sizes"] == {"train": 24, "validation": 12, "test": 12} and report.what == "text"
    assert report.preprocessing["max_tokens"] == 12 and not report.backbone["interpolated"]
    shown = " ".join(output.split())
    assert "of the 36 labelled texts" in shown and "image" not in shown
    card = (folder / "run" / "best" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "AutoModelForSequenceClassification" in card
    assert "behind 12 tokens" in card and "image" not in card
    assert (folder / "run" / "figures" / "race.png").exists()


def test_the_adapter_labels_new_texts_as_transformers_does(raced, tmp_path):
    folder, _ = raced
    adapter = folder / "run" / "best"
    texts = ["good film", "it was a very bad and awful meal " * 3]
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder / "bert", num_labels=2, ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(base, adapter).eval()
    for text, prediction in zip(texts, predict_texts(adapter, texts, top=2), strict=True):
        logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        expected = dict(zip(("bad", "good"), logits.softmax(-1).tolist(), strict=True))
        assert dict(zip(prediction.labels, prediction.probabilities, strict=True)) == pytest.approx(expected, abs=1e-6)
    (empty, good) = predict_texts(adapter, ["", "good film"], batch_size=1)  # a batch of nothing that can be read
    assert empty.error == "it is empty" and good.labels
    (tmp_path / "new.txt").write_text("good film\n\nbad film\n")
    (tmp_path / "new.csv").write_text("id,text\n1,a great book\n")
    done = invoke("predict", adapter, tmp_path / "new.txt", tmp_path / "new.csv", "--output", tmp_path / "out.csv")
    assert done.exit_code == 1 and "new.txt:2: it is empty" in done.output
    with open(tmp_path / "out.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"].rpartition("/")[2] for row in rows] == ["new.txt:1", "new.txt:2", "new.txt:3", "new.csv:1"]
    assert [bool(row["label"]) for row in rows] == [True, False, True, True]
    with pytest.raises(ValueError, match="was trained on texts: label them by predict_texts"):
        predict(adapter, [])


def test_a_saved_adapter_is_scored_on_the_texts_of_its_run(raced):
    folder, _ = raced
    test = {result.method: result.test for result in RunReport.load(folder / "run").results}["race"]
    done = invoke("evaluate", folder / "run" / "best", "--dataset", folder / "texts")
    assert done.exit_code == 0, done.output
    assert f"{100 * test:.2f} %" in done.output and "over 12 test texts" in done.output


def test_the_papers_strategy_runs_on_a_decoder_without_padding_of_its_own(tmp_path, caplog):
    model, data = write_text_model(tmp_path / "llama", "llama"), write_texts(tmp_path / "texts")
    for name in ("tokenizer_config.json", "config.json"):
        known = json.loads((model / name).read_text()) | {
            "pad_token": None,
            "pad_token_id": None,
            "eos_token": "[SEP]",
        }
        (model / name).write_text(json.dumps(known))
    length = ["--epochs", "1", "--supernet-epochs", "1", "--population-size", "4", "--generations", "1"]
    done = invoke(
        *("run", "--task", "text-classification", "--strategy", "noah", "--model", model, "--dataset", data),
        *(*length, "--baselines", "none", "--output", tmp_path / "run"),
    )
    assert done.exit_code == 0, done.output
    results = RunReport.load(tmp_path / "run").results
    assert [result.method for result in results] == ["noah inherited", "noah retrained", "noah continued"]
    rows = json.loads((tmp_path / "run" / "search.json").read_text())["candidates"][0]["architecture"]
    assert set(rows) == {"lora", "adapter"}  # VPT has no place there, which is said
    assert "tokens in front would move the positions" in caplog.text
    found = list(predict_texts(tmp_path / "run" / "best", ["good film", "a bad meal it was"], batch_size=2))
    assert all(prediction.labels for prediction in found)


def test_a_design_whose_classifier_cannot_be_fitted_first_is_refused_before_anything_is_written(tmp_path):
    model, data = write_text_model(tmp_path / "llama", "llama"), write_texts(tmp_path / "texts")
    (tmp_path / "first.json").write_text('{"name": "first", "dims": {"lora": 1}, "head_start": true}')
    for where in ("--design", "--baselines"):
        job = ["run", "--strategy", "race", "--task", "text-classification", "--model", model, "--dataset", data]
        done = invoke(*job, where, tmp_path / "first.json", "--output", tmp_path / "run")
        assert done.exit_code == 2 and not (tmp_path / "run").exists()
        fault = "design 'first' does not fit this backbone: the classifier of this family has no bias"
        assert fault in " ".join(done.output.split())


def test_a_decoder_reads_the_last_token_of_a_text_whatever_its_config_calls_padding(tmp_path):
    path = write_text_model(tmp_path, "llama") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 9}))
    tokenization = Tokenization.from_backbone(tmp_path)
    model, texts = load_classifier(tmp_path, ["bad", "good"], tokenization), ["good film", "it was a very bad meal"]
    tokens = tokenization.apply(texts)
    together = model(**pad_texts(tokens, tokenization.pad)).logits[0]
    torch.testing.assert_close(together, model(**pad_texts(tokens[:1], tokenization.pad)).logits[0])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (
            ["--task", "image-classification"],
            "reads texts, but the task is image-classification. Choose another model, or --task text-classification",
        ),
        (
            ["--task", "text-classification", "--image-size", "64"],
            "image_size is 64, but the task is text-classification",
        ),
        (
            ["--task", "text-classification", "--max-tokens", "49"],
            "max_tokens is 49; give a whole number from 3 to 48",
        ),
        (["--task", "text-classification", "--text-column", "body"], "no column 'body'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(given, fault, raced, tmp_path):
    folder, _ = raced
    done = invoke(
        "run", *given, "--model", folder / "bert", "--dataset", folder / "texts", "--output", tmp_path / "run"
    )
    assert done.exit_code == 2 and fault in " ".join(done.output.split())
    assert not (tmp_path / "run" / "settings.json").exists()

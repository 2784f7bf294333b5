"""New images get the labels and probabilities that transformers gives them, several files at a time, none lost."""

import csv
import io
import os
import signal
import subprocess
import sys
import warnings
from threading import Barrier

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import FAMILIES, make_model
from hub_server import client_of, serve
from image_files import encode, pixels
from safetensors.torch import load_file, save_file
from test_saved_adapter import NAMES, edit, save
from transformers import pipeline
from typer.testing import CliRunner

from peft_noah.cli import app
from peft_noah.run import prediction as module
from peft_noah.run.prediction import predict
from peft_noah.run.saved_adapter import SavedAdapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def photos(tmp_path):
    """Seven images of different sizes, modes and formats, by name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    images = {
        "0.png": pixels(0),
        "1.jpg": pixels(1, 40, 30),
        "2.webp": pixels(2, 16, 16),
        "3.png": pixels(3, 9, 50, ()),
        "4.bmp": pixels(4, 16, 17),
        "5.gif": pixels(5, 30, 16),
        "sub/6.png": pixels(6, 16, 16, (4,)),
    }
    for name, image in images.items():
        (folder / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(folder / name)
    return folder


def files_of(folder):
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def invoke(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def rows(text):
    return list(csv.reader(io.StringIO(text)))


# ---------------------------------------------------------------------- in Python


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [16, 24])
def test_labels_and_probabilities_are_those_of_transformers_pipeline(family, size, tmp_path, photos):
    adapter = save(tmp_path, family)
    saved = SavedAdapter.read(adapter)
    processor = saved.preprocessing.processor
    processor.size = {"height": size, "width": size}
    processor.save_pretrained(adapter)
    model = SavedAdapter.read(adapter).load().get_base_model()
    classify = pipeline("image-classification", model=model, image_processor=processor, top_k=5, device="cpu")
    for found in predict(adapter, files_of(photos), top=5, batch_size=3):
        expected = classify(found.file)
        assert found.labels == tuple(row["label"] for row in expected)
        # sums of another order: batches, packed weights
        torch.testing.assert_close(
            torch.tensor(found.probabilities), torch.tensor([row["score"] for row in expected]), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_no_answer(batch_size, adapter, photos):
    files = files_of(photos)
    found = list(predict(adapter, files, batch_size=batch_size))
    assert [prediction.file for prediction in found] == files
    for one, (expected,) in zip(found, (list(predict(adapter, [file])) for file in files), strict=True):
        assert one.labels == expected.labels
        assert one.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_half_precision_is_close_and_leaves_the_probabilities_in_float32(adapter, photos):
    files = files_of(photos)
    full_precision = list(predict(adapter, files, top=5))
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        pairs = list(zip(full_precision, predict(adapter, files, top=5, mixed_precision="bf16"), strict=True))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    for full, half in ((dict(zip(p.labels, p.probabilities, strict=True)) for p in pair) for pair in pairs):
        assert half != full and sum(half.values()) == pytest.approx(1, abs=1e-5)
        assert half == pytest.approx(full, abs=0.1)


def test_the_likeliest_classes_come_first_and_all_sum_to_one(adapter, photos):
    for found in predict(adapter, files_of(photos), top=5):
        assert sorted(found.labels) == sorted(NAMES)
        assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
        assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)


def test_an_image_that_cannot_be_read_says_why_in_its_place(adapter, photos):
    (photos / "1.jpg").write_bytes(b"no image")
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:60])
    (photos / "4.bmp").unlink()
    files = [str(photos / name) for name in ("0.png", "1.jpg", "2.webp", "3.png", "4.bmp")]
    found = list(predict(adapter, files, batch_size=2))
    assert [prediction.file for prediction in found] == files
    assert [prediction.error is None for prediction in found] == [True, False, True, False, False]
    assert all(bool(prediction.labels) == (prediction.error is None) for prediction in found)
    assert "no readable image" in found[1].error and "No such file" in found[4].error


def test_files_are_read_no_further_ahead_than_two_batches(adapter, photos, monkeypatch):
    read, file = [], str(photos / "0.png")
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda *arguments: read.append(arguments) or decode(*arguments))
    found = predict(adapter, (file for _ in range(10**9)), batch_size=4)
    for _ in range(9):
        next(found)
    assert 12 <= len(read) <= 17
    found.close()


def test_several_files_are_decoded_at_a_time(adapter, photos, monkeypatch):
    both, decode = Barrier(2, timeout=60), module._decode

    def wait_for_another(*arguments):
        both.wait()
        return decode(*arguments)

    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(module, "_decode", wait_for_another)
    assert len(list(predict(adapter, [str(photos / "0.png")] * 4, batch_size=4))) == 4


def test_whoever_reads_predictions_can_train_between_them(adapter, photos):
    for _ in predict(adapter, files_of(photos)[:2]):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_outputs_that_are_not_finite_are_an_error_that_names_the_image(tmp_path, photos):
    adapter = save(tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.classifier.bias"][1] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="outputs for .*0.png are not finite"):
        list(predict(adapter, [photos / "0.png"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top is 0"),
        ({"top": 6}, "top is 6, but the model knows 5 classes"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(options, message, adapter):
    with pytest.raises(ValueError, match=message):
        predict(adapter, [], **options)


# ---------------------------------------------------------------------- on the command line


def test_the_csv_has_one_row_per_image_in_the_order_of_names(adapter, photos, tmp_path):
    result = invoke(adapter, photos, "--output", tmp_path / "p.csv", "--batch-size", 3)
    assert result.exit_code == 0, result.output
    header, *found = rows((tmp_path / "p.csv").read_text())
    assert header == ["file", "label", "probability"] and [row[0] for row in found] == files_of(photos)
    for row, expected in zip(found, predict(adapter, files_of(photos)), strict=True):
        assert row[1] == expected.labels[0] and float(row[2]) == pytest.approx(expected.probabilities[0], abs=1e-5)
    assert not (tmp_path / "p.csv.partial").exists()


def test_a_pipe_gets_the_same_csv_and_nothing_else(adapter, photos, tmp_path):
    invoke(adapter, photos, "--output", tmp_path / "p.csv", "--top", 2)
    result = invoke(adapter, photos, "--top", 2)
    assert result.exit_code == 0 and result.stdout == (tmp_path / "p.csv").read_text()
    assert rows(result.stdout)[0] == ["file", "label", "probability", "label_2", "probability_2"]
    assert "7 images" in result.stderr


def test_a_terminal_gets_a_line_per_image(adapter, photos, monkeypatch, capsys):
    from peft_noah.cli.prediction_output import writer_of
    from peft_noah.run.prediction import Prediction

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with writer_of(None, 2) as write:
        write(Prediction("a.png", ("cat", "red \x1b[31mdog"), (0.912, 0.05)))
        write(Prediction("b.png", error="cut short"))
    assert capsys.readouterr().out == "a.png:  91.2 % cat,   5.0 % red [31mdog\nb.png: cannot be read\n"


def test_broken_images_have_an_empty_label_and_are_named_and_the_exit_code_is_1(adapter, photos, tmp_path):
    (photos / "1.jpg").write_bytes(b"no image")
    (photos / "notes.txt").touch()
    result = invoke(adapter, photos, "--output", tmp_path / "p.csv", "--top", 2)
    assert result.exit_code == 1
    assert rows((tmp_path / "p.csv").read_text())[2] == [str(photos / "1.jpg"), "", "", "", ""]
    assert "labelled 6 of 7 images; 1 cannot be read" in result.stderr
    assert "1.jpg: it is no readable image" in result.stderr and "left out: 1 .txt files" in result.stderr


def test_of_many_broken_images_ten_are_named_and_all_are_counted(adapter, tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(13):
        (tmp_path / "photos" / f"{index:02}.png").touch()
    result = invoke(adapter, tmp_path / "photos")
    assert result.exit_code == 1 and result.stderr.count("no readable image") == 10
    assert "and 3 more" in result.stderr and "labelled 0 of 13 images; 13 cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing/"], "no file or folder 'nothing'"),
        (["empty"], "there are no images in empty. It holds 1 .txt files."),
        (["photos", "--output", "no/where.csv"], "the folder of --output no/where.csv does not exist"),
        (["photos", "--output", "empty"], "--output empty is no file that can be written"),
        (["photos", "--output", "/dev/null"], "--output /dev/null is no file that can be written"),
        (["photos", "--output", "p.csv", "--top", "9"], "the model knows 5 classes"),
        (["photos", "--output", "p.csv", "--model", "no/thing/x"], "model folder 'no/thing/x' does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    arguments, message, adapter, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    before = files_of(tmp_path)
    result = invoke(adapter, *arguments)
    assert result.exit_code == 2 and message in result.stderr.replace("\n", " ")
    assert files_of(tmp_path) == before


def test_a_file_that_is_there_is_replaced_once_the_new_one_is_whole(adapter, photos, tmp_path, monkeypatch):
    output = tmp_path / "p.csv"
    output.write_text("old")
    monkeypatch.setattr("peft_noah.run.prediction._Classifier.__call__", lambda *_: 1 / 0)
    assert invoke(adapter, photos, "--output", output).exit_code == 1
    assert output.read_text() == "old" and (tmp_path / "p.csv.partial").exists()
    monkeypatch.undo()
    assert invoke(adapter, photos, "--output", output).exit_code == 0
    assert len(rows(output.read_text())) == 8 and not (tmp_path / "p.csv.partial").exists()


def command(*arguments):
    return [sys.executable, "-m", "peft_noah", "predict", *map(str, arguments)]


def test_names_of_any_bytes_reach_a_pipe_in_any_locale_as_they_are(adapter, tmp_path):
    name = os.fsencode(tmp_path) + b"/f\xff\xc3\xa9.png"
    with open(name, "wb") as file:
        file.write(encode(np.zeros((16, 16, 3), np.uint8)))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command(adapter, tmp_path), capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith(name + b",")


def test_a_reader_that_stops_early_is_no_error(adapter, photos):
    files = [photos / "0.png"] * 3000
    running = subprocess.Popen(
        command(adapter, *files, "--top", "5"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.stdout.readline()
    running.stdout.close()
    errors = running.stderr.read()
    running.wait()
    assert "Broken pipe" not in errors and "Traceback" not in errors


def test_a_signal_leaves_what_is_done_under_a_name_that_says_so(adapter, photos, tmp_path, monkeypatch):
    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("peft_noah.run.prediction._Classifier.__call__", stop)
    result = invoke(adapter, photos, "--output", tmp_path / "p.csv")
    assert result.exit_code == 128 + signal.SIGTERM
    assert "p.csv.partial holds the predictions so far. The same command starts anew." in result.stderr
    assert not (tmp_path / "p.csv").exists() and (tmp_path / "p.csv.partial").exists()


def test_an_adapter_of_a_backbone_given_elsewhere_labels_alike(tmp_path, photos):
    adapter = save(tmp_path)
    expected = invoke(adapter, photos).stdout
    make_model().save_pretrained(tmp_path / "copy")
    edit(adapter, base_model_name_or_path="/nowhere")
    assert invoke(adapter, photos, "--model", tmp_path / "copy").stdout == expected


def test_an_adapter_from_the_hub_brings_its_processor_and_names(tmp_path, photos):
    adapter = save(tmp_path)
    expected = invoke(adapter, photos).stdout
    edit(adapter, base_model_name_or_path="someone/vit")
    with serve() as hub, client_of(hub, tmp_path) as client:
        for name, folder in (("noah", adapter), ("vit", tmp_path / "backbone")):
            hub.repos[f"someone/{name}"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        code = f"from peft_noah.cli import app; app(['predict', 'someone/noah', {str(photos)!r}])"
        assert client(code, tmp_path).stdout == expected


def test_loading_tells_nobody_of_the_vocabulary(tmp_path):
    adapter = save(tmp_path)
    edit(adapter, base_model_name_or_path="/nowhere")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*vocabulary")
        SavedAdapter.read(adapter, str(tmp_path / "backbone")).load()

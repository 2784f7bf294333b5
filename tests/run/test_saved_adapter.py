"""What an adapter's own files say: its backbone, the names of its classes, its image processor."""

import json
import logging
import shutil

import pytest
import torch
from conftest import FAMILIES, make_model
from peft import get_peft_model
from transformers import AutoImageProcessor, ViTImageProcessor

from peft_noah import Architecture, NoahConfig
from peft_noah.data import bundled_backbone
from peft_noah.run.inputs import write_inputs
from peft_noah.run.saved_adapter import SavedAdapter
from peft_noah.run.settings import RunSettings

NAMES = ("cat", "dog", "owl", "ant", "bee")


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def save(folder, family="vit", names=NAMES, processor=True, **options):
    """A backbone in ``folder/backbone`` and an adapter of it in ``folder/run/adapter``, both with far-off weights."""
    backbone = make_model(family)
    backbone.save_pretrained(folder / "backbone")
    model = type(backbone).from_pretrained(folder / "backbone", id2label=dict(enumerate(names or NAMES)))
    config = NoahConfig(architecture=Architecture.uniform(4, lora=2, vpt=1), init_weights=False, **options)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.normal_()
    adapter = folder / "run" / "adapter"
    model.save_pretrained(adapter)
    edit(adapter, label_names=None if names is None else list(names))
    if processor:
        ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(adapter)
    return adapter


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_names_and_processor_are_the_adapters_own(family, tmp_path):
    saved = SavedAdapter.read(save(tmp_path, family))
    assert saved.backbone == str(tmp_path / "backbone") and saved.label_names == NAMES
    assert saved.preprocessing.size == (16, 16) and saved.preprocessing.mean == (0.1, 0.2, 0.3)
    assert saved.load().get_base_model().config.id2label == dict(enumerate(NAMES))


def test_classes_of_the_same_name_are_told_apart_by_their_place(tmp_path):
    saved = SavedAdapter.read(save(tmp_path, names=("cat", "cat", "dog", "", "cat")))
    assert list(saved.load().get_base_model().config.id2label.values()) == ["cat", "cat", "dog", "", "cat"]


def test_the_backbone_may_lie_elsewhere(tmp_path):
    adapter = save(tmp_path)
    shutil.move(tmp_path / "backbone", tmp_path / "moved")
    with pytest.raises(ValueError, match="backbone' does not exist, .* place of the same model by --model"):
        SavedAdapter.read(adapter)
    SavedAdapter.read(adapter, str(tmp_path / "moved")).load()


def test_another_model_is_refused(tmp_path):
    adapter = save(tmp_path)
    make_model(seed=1).save_pretrained(tmp_path / "twin")
    with pytest.raises(ValueError, match="backbone', and '.*twin' is another backbone: .*made for other weights"):
        SavedAdapter.read(adapter, str(tmp_path / "twin")).load()
    with pytest.raises(ValueError, match="model folder '.*nothing' does not exist"):
        SavedAdapter.read(adapter, str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", [None, ""])
def test_an_adapter_that_names_no_backbone_asks_for_it(name, tmp_path):
    adapter = save(tmp_path)
    edit(adapter, base_model_name_or_path=name)
    with pytest.raises(ValueError, match="which backbone it was made for. Give it by --model"):
        SavedAdapter.read(adapter)
    SavedAdapter.read(adapter, str(tmp_path / "backbone")).load()


def test_the_bundled_backbone_of_another_machine_is_the_bundled_one_here(tmp_path):
    adapter = save(tmp_path)
    edit(adapter, base_model_name_or_path="/home/somebody/site-packages/peft_noah/assets/vit-tiny-64")
    assert SavedAdapter.read(adapter).backbone == str(bundled_backbone())


def put_in_a_run(adapter, names):
    RunSettings().save(adapter.parent / "settings.json")
    sizes = {"train": 1, "validation": 1, "test": 1}
    data = {"source": "pets", "sizes": sizes, "label_names": names, "fingerprint": "0" * 64, "preprocessing": {}}
    write_inputs(adapter.parent, data, None)


def test_an_adapter_without_names_has_those_of_the_run_it_lies_in(tmp_path):
    adapter = save(tmp_path, names=None)
    put_in_a_run(adapter, list(NAMES))
    assert SavedAdapter.read(adapter).label_names == NAMES


@pytest.mark.parametrize("beside", [None, ["too", "few"]])
def test_else_its_classes_are_numbered_and_a_warning_says_so(beside, tmp_path, caplog):
    adapter = save(tmp_path, names=None)
    if beside is not None:
        put_in_a_run(adapter, beside)
    with caplog.at_level(logging.WARNING):
        assert SavedAdapter.read(adapter).label_names == ("0", "1", "2", "3", "4")
    assert "does not say what its 5 classes are called: they are numbered from 0" in caplog.text


def test_names_that_do_not_fit_the_classifier_are_refused(tmp_path):
    adapter = save(tmp_path)
    edit(adapter, label_names=["cat", "dog"])
    with pytest.raises(ValueError, match="names 2 classes, but the classifier has 5"):
        SavedAdapter.read(adapter)


def test_an_adapter_without_a_classifier_uses_its_backbones_own(tmp_path):
    saved = SavedAdapter.read(save(tmp_path, modules_to_save=[]))
    assert saved.label_names is None
    head = saved.load().get_base_model().classifier
    assert torch.equal(head.weight, make_model().classifier.weight)


def test_without_a_processor_the_backbones_is_used_and_a_warning_says_so(tmp_path, caplog):
    adapter = save(tmp_path, processor=False)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4] * 3).save_pretrained(tmp_path / "backbone")
    with caplog.at_level(logging.WARNING):
        assert SavedAdapter.read(adapter).preprocessing.mean == (0.4, 0.4, 0.4)
    assert "has no preprocessor_config.json: images are prepared as its backbone asks for" in caplog.text


def test_images_of_another_size_than_the_backbones_are_interpolated(tmp_path):
    adapter = save(tmp_path)
    processor = AutoImageProcessor.from_pretrained(adapter)
    processor.size = {"height": 24, "width": 24}
    processor.save_pretrained(adapter)
    model = SavedAdapter.read(adapter).load()
    assert model(pixel_values=torch.zeros(1, 3, 24, 24)).logits.shape == (1, 5)

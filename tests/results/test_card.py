"""The model card of an adapter: the Hub reads it, its code runs, and no value breaks it."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import peft
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from PIL import Image
from test_formatting import HOSTILE, MARKDOWN, inline_types, shown
from transformers import ViTImageProcessor

from peft_noah import NoahConfig
from peft_noah.architecture import Architecture
from peft_noah.results.card import model_card
from peft_noah.results.card_data import CardData

DATA = CardData(
    base_model="google/vit-base-patch16-224-in21k",
    architecture=Architecture(lora=[8, 4, 0], vpt=[1, 10, 0]),
    parameters=12_345,
    head_parameters=2_307,
    labels=["cat", "dog", "it's"],
    preprocessing={"size": [64, 48], "mean": [0.485, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "resample": "bilinear"},
    recipe="released",
    task="pets",
    dataset="timm/oxford-iiit-pet",
    accuracy={"validation": (0.75, 200), "test": (0.8, 2_000)},
    training={"weights": "retrained", "epochs": 100, "seed": 3},
    search={"budget": 640_000, "candidates": 750, "variant": "default"},
    versions={"peft": peft.__version__, "torch": "2.13.0"},
    figure="figures/found architecture.png",
)
MINIMAL = replace(DATA, dataset=None, accuracy={}, training={}, search={}, versions={}, figure=None)


def snippet(data: CardData) -> str:
    """The first block of code in a card."""
    return re.search(r"^```python\n(.*?)\n```$", model_card(data), re.DOTALL | re.MULTILINE)[1]


def assigned(code: str, name: str) -> object:
    """What a line ``name = <literal>`` gives the name."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name and not isinstance(node.value, ast.Call):
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is not assigned")


def headings(text: str) -> list[str]:
    tokens = MARKDOWN.parse(text)
    return [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]


# --- what the Hub reads --------------------------------------------------------------------------------------------


def test_the_hub_client_reads_the_metadata_back():
    data = ModelCard(model_card(DATA)).data
    assert data.library_name == "peft"
    assert data.base_model == "google/vit-base-patch16-224-in21k"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["peft", "noah", "image-classification"]
    assert data.datasets == ["timm/oxford-iiit-pet"]
    results = [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results]
    assert results == [
        ("timm/oxford-iiit-pet", "validation", "accuracy", 0.75),
        ("timm/oxford-iiit-pet", "test", "accuracy", 0.8),
    ]
    assert {r.task_type for r in data.eval_results} == {"image-classification"}


def test_unknown_things_are_left_out_of_the_metadata():
    data = ModelCard(model_card(replace(MINIMAL, base_model="/home/someone/vit"))).data
    assert data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "image-classification",
        "tags": ["peft", "noah", "image-classification"],
    }


def test_a_folder_that_looks_like_a_hub_id_is_not_named_as_one(tmp_path, monkeypatch):
    (tmp_path / "models" / "vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ModelCard(model_card(replace(DATA, base_model="models/vit"))).data.base_model is None
    assert ModelCard(model_card(replace(DATA, base_model="models/other"))).data.base_model == "models/other"


@pytest.mark.parametrize("name", ["/a/b", "./a", "a/b/c", "a--b", "a..b", "-a/b", "a b", "a/", "c:\\a", "a\n", "a/b."])
def test_what_is_no_hub_id_is_not_in_the_metadata(name):
    data = ModelCard(model_card(replace(DATA, base_model=name, dataset=name))).data
    assert data.base_model is None and data.datasets is None


def test_the_metadata_has_no_yaml_anchors_that_other_parsers_may_not_know():
    assert not re.search(r"[&*]id\d", model_card(DATA))


# --- how to load ---------------------------------------------------------------------------------------------------


def test_the_first_thing_after_the_title_is_the_code_and_its_first_line_imports_peft_noah():
    body = ModelCard(model_card(DATA)).text.strip().splitlines()
    assert body[:4] == [
        "# NOAH adapter for pets",
        "",
        "```python",
        "import peft_noah  # registers the method NOAH with PEFT",
    ]


def test_the_code_names_model_adapter_and_classes():
    code = snippet(replace(DATA, adapter="me/pets-noah"))
    compile(code, "card", "exec")
    assert assigned(code, "adapter") == "me/pets-noah"
    assert assigned(code, "labels") == ["cat", "dog", "it's"]
    assert "'google/vit-base-patch16-224-in21k'" in code
    assert "interpolate_pos_encoding" not in code
    assert "interpolate_pos_encoding=True" in snippet(replace(DATA, interpolate_pos_encoding=True))


def test_many_classes_are_listed_at_the_end_and_not_in_the_code():
    names = [f"class_{index}" for index in range(101)]
    data = replace(DATA, labels=names)
    code = snippet(data)
    compile(code, "card", "exec")
    assert "num_labels=101," in code and "class_" not in code
    assert "\n## Classes\n\n0. class\\_0\n" in model_card(data)
    assert "100. class\\_100\n" in model_card(data)
    assert assigned(snippet(replace(DATA, labels=names[:100])), "labels") == names[:100]
    assert "## Classes" not in model_card(DATA)


def test_the_code_runs_and_answers_with_the_saved_classifier(vit, tmp_path, monkeypatch, capsys):
    vit.save_pretrained(tmp_path / "vit")
    vit.config.num_labels = 3
    vit.classifier = type(vit.classifier)(vit.config.hidden_size, 3)
    architecture = Architecture(lora=[2, 0, 0, 0], adapter=[0, 3, 0, 0], vpt=[1, 1, 0, 0])
    model = get_peft_model(vit, NoahConfig(architecture=architecture))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("bias") and "classifier" in name:
            parameter.data[2] = 100.0
    model.save_pretrained(tmp_path / "adapter")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "adapter")
    Image.new("L", (20, 30), 77).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(snippet(replace(DATA, base_model="vit", adapter="adapter")), {})
    assert capsys.readouterr().out.strip() == "it's"


def test_peft_leaves_the_text_alone_when_it_saves_the_folder_again(vit, tmp_path):
    model = get_peft_model(vit, NoahConfig(architecture=Architecture.uniform(4, lora=1)))
    (tmp_path / "README.md").write_text(model_card(DATA), encoding="utf-8")
    model.save_pretrained(tmp_path)
    again = ModelCard((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert again.text.strip() == ModelCard(model_card(DATA)).text.strip()


# --- what it tells -------------------------------------------------------------------------------------------------


def test_the_card_tells_what_a_user_must_know():
    text = model_card(DATA)
    for part in (
        "64 x 48 pixels (bilinear), scales them to 0 to 1, subtracts the mean (0.485, 0.5, 0.5)",
        "| LoRA (rank)  |   8 |   4 |   0 |",
        "| VPT (tokens) |   1 |  10 |   0 |",
        "![Dims per block and prompt module](figures/found%20architecture.png)",
        "12,345 trainable prompt parameters, and 2,307 of the classifier",
        "| validation |    200 |                75.0 ± 3.1 |",
        "| test       |  2,000 |                80.0 ± 0.9 |",
        "binomial standard error",
        "- recipe: released\n- data: pets\n- weights: retrained\n- epochs: 100\n- seed: 3\n",
        "- budget: 640,000\n- candidates: 750\n- variant: default\n",
        "so the accuracy on them is too high",
        "- torch 2.13.0\n",
    ):
        assert part in text
    assert headings(text)[-6:] == [
        "Architecture",
        "Accuracy",
        "Training",
        "Search",
        "Limitations",
        "Framework versions",
    ]


def test_what_is_unknown_has_no_section():
    text = model_card(MINIMAL)
    assert headings(ModelCard(text).text) == ["NOAH adapter for pets", "Architecture", "Training", "Limitations"]
    assert "![" not in text and "too high" not in text


# --- hostile values ------------------------------------------------------------------------------------------------


@given(st.lists(HOSTILE.filter(str.strip), min_size=5, max_size=5), st.lists(HOSTILE, min_size=1, max_size=3))
def test_no_value_breaks_the_metadata_the_code_or_the_text(names, labels):
    task, recipe, model, key, value = (f"x{name}" for name in names)
    data = replace(
        DATA,
        task=task,
        recipe=recipe,
        base_model=model,
        adapter=value,
        dataset=value,
        labels=labels,
        accuracy={key: (0.5, 10)},
        training={key: value, "list": [value], "map": {key: value}},
        search={key: [[value]]},
        versions={key: value},
        preprocessing={**DATA.preprocessing, "resample": value},
    )
    card = ModelCard(model_card(data))
    plain = ModelCard(model_card(replace(DATA, accuracy={"test": (0.5, 10)})))
    assert set(card.data.to_dict()) | {"base_model", "datasets"} == set(plain.data.to_dict())
    assert card.data.tags == ["peft", "noah", "image-classification"]
    code = snippet(data)
    compile(code, "card", "exec")
    assert assigned(code, "adapter") == value
    assert [label.split() for label in assigned(code, "labels")] == [readable(label).split() for label in labels]
    assert headings(card.text)[1:] == headings(plain.text)[1:]
    assert inline_types(card.text) <= inline_types(plain.text) | {"text_special"}
    assert shown(card.text).count("Dims per block and prompt module") == 1


def readable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def test_a_value_cannot_end_the_metadata():
    data = replace(DATA, task="x\n---\n# owned\nlicense: evil", dataset="y\n---\n", base_model="z\n---\n")
    front = model_card(data).split("\n---\n")[0].removeprefix("---\n")
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert ModelCard(model_card(data)).text.strip().startswith("# NOAH adapter for x --- \\# owned license: evil")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figure": "/tmp/a.png"}, "not inside the adapter's folder"),
        ({"figure": "../a.png"}, "not inside the adapter's folder"),
        ({"figure": "a/../../b.png"}, "not inside the adapter's folder"),
        ({"figure": "https://host/a.png"}, "not inside the adapter's folder"),
        ({"figure": "c:\\a.png"}, "not inside the adapter's folder"),
        ({"figure": ""}, "not inside the adapter's folder"),
        ({"labels": []}, "give the names of 1 to 100,000 classes"),
        ({"labels": "abc"}, "labels is 'abc'"),
        ({"accuracy": {"test": (80.0, 10)}}, "not percent"),
        ({"accuracy": {"test": (0.8, 0)}}, "0 images"),
        ({"parameters": -1}, "parameters is -1"),
        ({"head_parameters": 1.0}, "head_parameters is 1.0"),
        ({"architecture": {"lora": [1], "vpt": [1, 2]}}, "row 'vpt' has 2 dims"),
        ({"preprocessing": {"size": [64, 64], "mean": [0.5] * 3}}, "preprocessing has std None; give 3 numbers"),
        ({"preprocessing": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}}, "size 64; give 2 numbers"),
        ({"task": " \n"}, "task is ' \\n'; give its name"),
        ({"base_model": None}, "base_model is None; give its name"),
    ],
)
def test_data_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(DATA, **change)


def test_a_card_without_test_labels_says_so_and_claims_no_number():
    card = model_card(replace(DATA, accuracy={"validation": (0.75, 200), "test": None}))
    assert re.search(r"\| test +\| +0 \| +– \|", card)
    assert "–: there were no labelled images, so it was not measured." in card
    assert "the test images chose nothing" not in card
    assert [r.dataset_split for r in ModelCard(card).data.eval_results] == ["validation"]

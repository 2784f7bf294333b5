"""What `peft-noah backbones` and `peft-noah check` say: of families that are known, and of a model of the user's."""

from pathlib import Path

import pytest
from families import FAMILIES
from transformers import PvtConfig, ResNetConfig, SiglipVisionConfig, SwinConfig, ViTMAEConfig, YolosConfig
from typer.testing import CliRunner

from peft_noah.cli import app
from peft_noah.run.checking import check_model, families
from peft_noah.tuner.backbones import BACKBONES

RUNNER = CliRunner()


def saved(config, folder):
    config.save_pretrained(folder)
    return folder


def test_every_family_is_listed_with_what_works():
    result = RUNNER.invoke(app, ["backbones"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert {line.split()[0] for line in lines[1 : 1 + len(BACKBONES)]} == set(BACKBONES) >= set(FAMILIES)
    assert "No VPT in swin, swinv2: its blocks attend inside windows" in result.output
    assert next(line for line in lines if line.startswith("clip ")).split()[1:4] == ["yes", "yes", "yes"]
    assert {family.name for family in families() if family.tokens and family.sizes} == {"swin", "swinv2", "hiera"}


def test_a_model_is_tried_with_small_random_weights_from_its_config_alone(tmp_path):
    answer = check_model(saved(ViTMAEConfig(), tmp_path / "mae"))  # as large as a ViT-B/16
    assert answer.works and "(vit, ViTForImageClassification): yes." in answer.text
    for line in ("images of 224 x 224 pixels", "modules: lora, adapter, vpt, ", "fast_forward: on"):
        assert any(said.startswith(f"  {line}") for said in answer.text.splitlines())
    assert list((tmp_path / "mae").iterdir()) == [tmp_path / "mae" / "config.json"]


def test_what_a_family_has_no_place_for_is_said(tmp_path):
    small = SwinConfig(image_size=32, patch_size=4, window_size=2, depths=[2, 2], num_heads=[2, 4], embed_dim=32)
    answer = check_model(saved(small, tmp_path))
    assert answer.works and "  no vpt: its blocks attend inside windows with a fixed number of places" in answer.text


def test_a_family_without_a_classifier_is_for_a_module_of_ones_own(tmp_path):
    answer = check_model(saved(SiglipVisionConfig(image_size=32, patch_size=16), tmp_path))
    assert answer.works and "no classifier of transformers" in answer.text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (YolosConfig(image_size=[32, 32]), "register_backbone('yolos', BACKBONES['data2vec-vision'])"),
        (PvtConfig(image_size=32), "the PvtLayers in 'pvt.encoder.block.0'"),
        (ResNetConfig(), "no list of equal blocks with Linear layers"),
    ],
)
def test_a_family_that_nobody_has_described_is_told_what_is_missing(config, said, tmp_path):
    saved(config, tmp_path)
    known = dict(BACKBONES)
    result = RUNNER.invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 1 and ": no." in result.output and said in result.output
    assert known == BACKBONES


def test_a_folder_without_a_config_is_an_error(tmp_path):
    result = RUNNER.invoke(app, ["check", str(tmp_path)])
    assert result.exit_code == 2 and "cannot read config.json" in result.output


def test_the_page_of_families_says_what_their_entries_say():
    """docs/backbones.py writes its table from tries; a new family, or one that is changed, asks for another run of it."""
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    said = {row[0].split("`")[1]: (row[3] == "yes", row[-2] == "yes", row[-1]) for row in rows}
    sizes = {"yes": "yes", "no": "–", "": ""}
    built_in = [family for family in families() if not family.name.endswith("_vision_model")]
    assert said == {
        family.name: (family.tokens is None, family.fast is None, sizes[family.sizes]) for family in built_in
    }
    assert all(reason in page for family in built_in for reason in (family.tokens, family.fast) if reason)

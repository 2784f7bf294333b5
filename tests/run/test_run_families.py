"""The whole job on backbones that are no plain ViT: without a place for tokens, of patches, of another class's checkpoint."""

import pytest
import torch
from families import SIDE, WIDTH, make_family
from tiny_runs import SMALL, invoke, write_task
from transformers import DINOv3ViTConfig, ViTMAEConfig, ViTMAEForPreTraining

from peft_noah.run.context import RunContext, read_splits
from peft_noah.run.models import load_backbone
from peft_noah.run.race import within_budget
from peft_noah.run.settings import RunSettings
from peft_noah.searching.portfolio import PORTFOLIO
from peft_noah.searching.result import SearchResult

_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    write_task(folder / "task")
    for name in ("swin", "siglip2"):
        make_family(name).save_pretrained(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_a_hierarchical_backbone_is_searched_without_tokens(work):
    options = "--model", "swin", "--dataset", "task", "--strategy", "noah", "--baselines", "vpt", *SMALL
    done = invoke("run", *options, "--output", "noah")
    assert done.exit_code == 0, done.output
    assert "vpt is left out: its blocks attend inside windows" in " ".join(done.output.split())
    found = SearchResult.load(work / "noah" / "search.json")
    assert set(found.best.architecture) == {"lora", "adapter"} and found.budget == round(640_000 * 80 / (768 * 12))
    assert (work / "noah" / "adapter").exists() and not (work / "noah" / "adapter-vpt").exists()


def test_a_race_leaves_out_the_design_that_has_no_place(work):
    run = RunContext("race", RunSettings(model="swin", dataset="task", epochs=1))
    designs = within_budget(run, PORTFOLIO)
    assert [design.name for design in PORTFOLIO if design not in designs] == ["LoRA, Adapter and tokens"]


def test_a_backbone_that_reads_patches_is_trained_on_images_and_labels_them(work):
    options = "--model", "siglip2", "--dataset", "task", "--epochs", "1", "--baselines", "vpt"
    done = invoke("run", *options, "--output", "patches")
    assert done.exit_code == 0, done.output
    done = invoke("predict", work / "patches" / "adapter-vpt", picture(work), "--output", work / "labels.csv")
    assert done.exit_code == 0, done.output
    assert (work / "labels.csv").read_text().splitlines()[1].split(",")[1].startswith("class ")


def picture(work):
    from PIL import Image

    Image.new("RGB", (20, 30)).save(work / "one.png")
    return work / "one.png"


def test_a_masked_autoencoder_is_loaded_as_the_vit_that_it_trains(work):
    torch.manual_seed(0)
    decoder = {f"decoder_{name}": value for name, value in _SIZES.items()}
    made = ViTMAEForPreTraining(ViTMAEConfig(**_SIZES, **decoder, image_size=SIDE, patch_size=8))
    made.save_pretrained(work / "mae")
    splits = read_splits(RunSettings(model="mae", dataset="task"))
    model = load_backbone("mae", splits, seed=0)
    assert type(model).__name__ == "ViTForImageClassification" and model.config.num_labels == 3
    own = made.vit.state_dict()
    shared = [name for name, weight in model.vit.state_dict().items() if torch.equal(own[name], weight)]
    assert len(shared) == len(model.vit.state_dict()) > 20


def test_a_family_without_a_classifier_is_refused_before_anything_is_read(work):
    DINOv3ViTConfig(**_SIZES, image_size=SIDE, patch_size=8).save_pretrained(work / "dinov3")
    done = invoke("run", "--model", "dinov3", "--dataset", "nothing", "--output", "refused")
    assert done.exit_code == 2 and not (work / "refused").exists()
    assert "transformers has no image classifier for model_type 'dinov3_vit'" in " ".join(done.output.split())

"""Pushing to and loading from a Hub: the real huggingface_hub client, in processes of its own, on a server on loopback."""

import re

import pytest
import torch
import yaml
from hub_server import client_of, serve
from safetensors.torch import load, load_file

from peft_noah import Architecture

ARCHITECTURE = Architecture(lora=[3, 0, 2, 1], adapter=[0, 2, 0, 1], vpt=[2, 3, 0, 0])

PUSH = """
import torch
from conftest import make_model
from huggingface_hub import HfApi
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification
from peft_noah import NoahConfig

make_model().push_to_hub("someone/tiny-vit")
backbone = AutoModelForImageClassification.from_pretrained("someone/tiny-vit")
architecture = {architecture!r}
model = get_peft_model(backbone, NoahConfig(recipe="released", architecture=architecture, init_weights=False)).eval()
model.push_to_hub("someone/tiny-noah")
model.save_pretrained("folder")
HfApi().create_repo("someone/with-card")
HfApi().upload_folder(repo_id="someone/with-card", folder_path="folder")
model.push_to_hub("someone/with-card")  # again: transformers keeps a card that is there
pixels = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    save_file({{"pixels": pixels, "logits": model(pixel_values=pixels).logits}}, "expected.safetensors")
"""

LOAD = """
import torch
from safetensors.torch import load_file, save_file
import peft_noah
from peft import AutoPeftModel, PeftModel
from transformers import AutoModelForImageClassification

def base():
    return AutoModelForImageClassification.from_pretrained("someone/tiny-vit")

roads = {
    "peft": lambda: PeftModel.from_pretrained(base(), "someone/tiny-noah"),
    "auto": lambda: AutoPeftModel.from_pretrained("someone/tiny-noah"),
    "transformers": lambda: AutoModelForImageClassification.from_pretrained("someone/tiny-noah"),
}
pixels = load_file("expected.safetensors")["pixels"]
with torch.no_grad():
    save_file({name: road().eval()(pixel_values=pixels).logits for name, road in roads.items()}, "found.safetensors")
"""


@pytest.fixture(scope="module")
def hub():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with client_of(hub, tmp_path_factory.mktemp("home")) as run:
        yield run


@pytest.fixture(scope="module")
def pushed(client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    client(PUSH.format(architecture=ARCHITECTURE.to_dict()), folder)
    return folder


def test_push_to_hub_sends_config_safetensors_and_card_only(hub, pushed):
    files = hub.repos["someone/tiny-noah"]
    assert set(files) - {".gitattributes"} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert all(".noah_" in name or ".classifier." in name for name in load(files["adapter_model.safetensors"]))


def test_every_road_loads_from_the_hub_bit_for_bit(hub, client, pushed):
    start = len(hub.log)
    client(LOAD, pushed)
    expected, found = load_file(pushed / "expected.safetensors")["logits"], load_file(pushed / "found.safetensors")
    assert set(found) == {"peft", "auto", "transformers"}
    assert all(torch.equal(logits, expected) for logits in found.values())
    # it came over the wire, and nothing but safetensors was asked for
    asked = [line for line in hub.log[start:] if "/resolve/" in line and "tiny-noah" in line]
    assert any(line.startswith("GET") and line.endswith("adapter_model.safetensors") for line in asked)
    assert not any(line.endswith((".bin", ".pt", ".pth", ".pkl")) for line in asked)


PICKLED = """
import peft_noah, torch
from peft import PeftModel
from transformers import AutoModelForImageClassification

base = AutoModelForImageClassification.from_pretrained("someone/tiny-vit")
torch.load = None  # whoever opens the pickle fails otherwise
try:
    PeftModel.from_pretrained(base, "someone/pickled")
except ValueError as error:
    print(error)
"""


def test_a_repository_with_a_pickle_alone_is_refused_unopened(hub, client, pushed):
    files = hub.repos["someone/tiny-noah"]
    hub.repos["someone/pickled"] = {
        "adapter_config.json": files["adapter_config.json"],
        "adapter_model.bin": b"no pickle is opened",
    }
    start = len(hub.log)
    assert "adapter_model.bin alone, a pickle" in client(PICKLED, pushed).stdout
    assert not any(line.startswith("GET") and line.endswith(".bin") for line in hub.log[start:])


def test_the_card_of_a_saved_folder_says_how_to_load_first_and_what_it_is_and_outlives_a_push(hub, pushed):
    card = hub.repos["someone/with-card"]["README.md"].decode()
    assert card == (pushed / "folder" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert {"peft", "noah", "image-classification"} <= set(metadata["tags"])
    assert (metadata["library_name"], metadata["base_model"]) == ("peft", "someone/tiny-vit")
    assert metadata["pipeline_tag"] == "image-classification"
    assert body.index("import peft_noah") < body.index("from_pretrained") < body.index("## Architecture")
    assert re.search(r"LoRA.*\| *3 \| *0 \| *2 \| *1 \|", body)


def test_the_card_of_a_run_goes_to_the_hub_as_it_is_and_its_snippet_loads(hub, client, pushed):
    from peft_noah.results.card import model_card
    from peft_noah.results.card_data import CardData

    data = CardData(
        base_model="someone/tiny-vit",
        architecture=ARCHITECTURE,
        parameters=1,
        head_parameters=125,
        labels=list("abcde"),
        preprocessing={"size": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3},
        recipe="released",
        task="pets",
        adapter="someone/from-a-run",
    )
    (pushed / "card.md").write_text(model_card(data))
    upload = """
from huggingface_hub import HfApi, snapshot_download
from PIL import Image
from transformers import ViTImageProcessor
folder = snapshot_download("someone/tiny-noah", local_dir="run")
open("run/README.md", "w").write(open("card.md").read())
ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("run")
HfApi().create_repo("someone/from-a-run")
HfApi().upload_folder(repo_id="someone/from-a-run", folder_path="run", ignore_patterns=[".cache/*"])
Image.new("RGB", (20, 20)).save("image.png")
"""
    client(upload, pushed)
    card = hub.repos["someone/from-a-run"]["README.md"].decode()
    assert card == model_card(data)
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert client(snippet, pushed).stdout.strip() in set("abcde")

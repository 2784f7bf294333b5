"""Writes the adapter folders that tests/test_saving.py loads for ever: run once per release whose files differ.

python tests/adapters/make.py        # writes tests/adapters/v<version of peft_noah>, and never over an old one
"""

from pathlib import Path

import torch
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from peft_noah import NoahConfig, __version__

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
ARCHITECTURE = {"lora": [2, 0, 1, 3], "adapter": [0, 2, 1, 0], "vpt": [2, 1, 0, 0]}


def main() -> None:
    """Write a tiny backbone and, per recipe, an adapter with an input and its logits."""
    folder = Path(__file__).parent / f"v{__version__}"
    folder.mkdir()
    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(**SIZES, num_hidden_layers=4, num_labels=5))
    for parameter in vit.parameters():  # transformers starts close to zero, where an error would not show
        torch.nn.init.normal_(parameter, std=0.3)
    vit.save_pretrained(folder / "backbone")
    for recipe in ("paper", "released"):
        backbone = AutoModelForImageClassification.from_pretrained(folder / "backbone")
        config = NoahConfig(recipe=recipe, architecture=ARCHITECTURE, init_weights=False)
        model = get_peft_model(backbone, config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.3)
        # a folder of whoever ran this is of no use to anyone else
        config.base_model_name_or_path = "tests/adapters/backbone"
        model.save_pretrained(folder / recipe)
        (folder / recipe / "README.md").unlink()
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            logits = model(pixel_values=pixels).logits
        save_file({"pixel_values": pixels, "logits": logits}, folder / recipe / "expected.safetensors")


if __name__ == "__main__":
    main()

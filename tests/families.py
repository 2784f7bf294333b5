"""One tiny classifier of each family that is built in, of transformers' own class, with random weights."""

import importlib.util

import torch
import transformers as tf

WIDTH, BLOCKS, SIDE = 16, 2, 16

_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 32}
_IMAGES = {**_SIZES, "image_size": SIDE, "patch_size": 8}
_DINO = {key: value for key, value in _IMAGES.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
_STAGES = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": WIDTH,
    "depths": [1, 2],
    "num_heads": [2, 2],
    "mlp_ratio": 2.0,
}
_TEXT = {**_SIZES, "num_hidden_layers": 1, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _pair(name, **vision):
    config = getattr(tf, f"{name}Config")(vision_config=vision or _IMAGES, text_config=_TEXT, num_labels=3)
    return getattr(tf, f"{name}ForImageClassification")(config)


def _one(name, **options):
    return getattr(tf, f"{name}ForImageClassification")(getattr(tf, f"{name}Config")(**options, num_labels=3))


FAMILIES = {
    "vit": lambda: _one("ViT", **_IMAGES),
    "vit_msn": lambda: _one("ViTMSN", **_IMAGES),
    "deit": lambda: tf.DeiTForImageClassificationWithTeacher(tf.DeiTConfig(**_IMAGES, num_labels=3)),
    "ijepa": lambda: _one("IJepa", **_IMAGES),
    "dinov2": lambda: _one("Dinov2", **_DINO),
    "dinov2_with_registers": lambda: _one("Dinov2WithRegisters", **_DINO, num_register_tokens=2),
    "beit": lambda: _one("Beit", **_IMAGES, use_relative_position_bias=True, drop_path_rate=0.0),
    "data2vec-vision": lambda: _one(
        "Data2VecVision", **_IMAGES, use_relative_position_bias=True, use_shared_relative_position_bias=True
    ),
    "clip": lambda: _pair("CLIP"),
    "metaclip_2": lambda: _pair("MetaClip2"),
    "siglip": lambda: _pair("Siglip"),
    "swin": lambda: _one("Swin", **_STAGES, window_size=2),
    "swinv2": lambda: _one("Swinv2", **_STAGES, window_size=2),
    "hiera": lambda: _one(
        "Hiera",
        **{
            **_STAGES,
            "image_size": [SIDE, SIDE],
            "patch_size": [5, 5],
            "patch_stride": [4, 4],
            "patch_padding": [2, 2],
        },
        num_query_pool=1,
        masked_unit_size=[2, 2],
        masked_unit_attention=[True, False],
    ),
    "siglip2": lambda: _pair("Siglip2", **_SIZES, num_patches=4, patch_size=8),
}


if importlib.util.find_spec("timm"):  # which needs torchvision, and so another torch than the one that CI has
    _TIMM = {
        "img_size": SIDE,
        "patch_size": 8,
        "embed_dim": WIDTH,
        "depth": BLOCKS,
        "num_heads": 2,
        "init_values": 0.1,
    }
    FAMILIES["timm_wrapper"] = lambda: _one("TimmWrapper", architecture="vit_tiny_patch16_224", model_args=_TIMM)


def make_family(name, seed=0):
    """A tiny classifier; also what is zero or one at its start, such as a bias of positions, is random."""
    torch.manual_seed(seed)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model

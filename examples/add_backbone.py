"""Teach peft-noah a model family it does not know: BEiT, whose blocks have other names than its output scales.

    python examples/add_backbone.py

One `Backbone` says where the blocks are and which leaves in them are the sites; everything else follows. `check_backbone`
tries every site, and says whether `fast_forward` knows the family.
"""

import torch
from peft import get_peft_model
from transformers import BeitConfig, BeitForImageClassification

from peft_noah import Backbone, NoahConfig, check_backbone, register_backbone

register_backbone(
    "beit",
    Backbone(
        blocks="layers",
        projections={"query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj"},
        attention_output="attention.o_proj",
        mlp_output="mlp.fc2",
        norm="layernorm_before",
    ),
)

# relative position biases have a fixed number of tokens, so this BEiT has none: VPT adds tokens
config = BeitConfig(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
    use_relative_position_bias=False,
    use_shared_relative_position_bias=False,
    use_absolute_position_embeddings=True,
    num_labels=3,
)
beit = BeitForImageClassification(config)
print(check_backbone(beit))
model = get_peft_model(beit, NoahConfig())
model.print_trainable_parameters()
print(model.get_architecture())
print(model(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape)

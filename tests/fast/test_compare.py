"""Families and prompt modules that the package does not know: the fast forward computes the same, or is off and says why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import SIZES, make_model
from peft import get_peft_model
from torch import nn
from transformers import BeitConfig, BeitForImageClassification

from peft_noah import Backbone, NoahConfig, PromptModule, check_backbone, register_backbone, register_prompt_module
from peft_noah.fast import fast_forward
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.prompts import PROMPT_MODULES


class Own(PromptModule):
    """A module from outside, with weights that start far from zero."""

    site = "mlp_output"

    def shapes(self, dim):
        return {"down": (dim, self.out_features), "up": (dim, self.out_features)}

    def reset_parameters(self, config):
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)

    def bottleneck(self, y):
        return F.linear(y, self.active("down")) @ self.active("up")


class Squeeze(Own):
    """Squeeze and excite: scales channels by what the mean over all tokens says."""

    name = "squeeze"

    def forward(self, x, y):
        return y * torch.sigmoid(self.bottleneck(y.mean(1, keepdim=True)))


class SqueezeThatClaims(Squeeze):
    """Says what is not so, and starts without an effect."""

    name = "claims"
    is_tokenwise = True

    def reset_parameters(self, config):
        nn.init.normal_(self.down, std=0.3)
        nn.init.zeros_(self.up)


class Depthwise(Own):
    """A 3x3 depthwise convolution over the patches, all tokens but the first."""

    name = "depthwise"

    def shapes(self, dim):
        return {"kernel": (dim, 1, 3, 3)}

    def forward(self, x, y):
        kernel = self.active("kernel")
        side = int((y.shape[1] - 1) ** 0.5)
        patches = y[:, -side * side :, : len(kernel)]
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        mixed = F.conv2d(grid, kernel, padding=1, groups=len(kernel)).flatten(2).transpose(1, 2)
        more = F.pad(mixed, (0, y.shape[-1] - len(kernel), y.shape[1] - side * side, 0))
        return y + more


class DepthwiseThatClaims(Depthwise):
    name = "depthwise_claims"
    is_tokenwise = True


class OtherDropout(Own):
    """Token by token, with dropout that is not an attribute called ``dropout``."""

    name = "other_dropout"
    site = "norm"
    is_tokenwise = True

    def _configure(self, config):
        self.noise = nn.Sequential(nn.Identity(), nn.Dropout(0.5))

    def forward(self, x, y):
        return y + self.noise(self.bottleneck(y))


class OwnNoise(Own):
    """Token by token, with noise that it draws itself and does not speak of."""

    name = "own_noise"
    site = "norm"
    is_tokenwise = True

    def forward(self, x, y):
        y = y + self.bottleneck(y)
        return y + torch.randn_like(y) if self.training else y


class StatedNoise(OwnNoise):
    name = "stated_noise"

    @property
    def is_random(self):
        return self.training


MODULES = (Squeeze, SqueezeThatClaims, Depthwise, DepthwiseThatClaims, OtherDropout, OwnNoise, StatedNoise)


@pytest.fixture(autouse=True)
def registered():
    before = dict(PROMPT_MODULES), dict(BACKBONES)
    for cls in MODULES:
        register_prompt_module(cls)
    BACKBONES.pop("beit")  # as if it were not built in
    yield
    for table, kept in zip((PROMPT_MODULES, BACKBONES), before, strict=True):
        table.clear()
        table.update(kept)


def build(family="vit", base=None, dtype=torch.float64, **rows):
    architecture = {name: [dim] * 4 for name, dim in rows.items()}
    config = NoahConfig(architecture=architecture, init_weights=False, dropout=0.0)
    base = make_model(family) if base is None else base
    return get_peft_model(base, config, autocast_adapter_dtype=False).to(dtype)


def both(model, pixels, **options):
    """Logits by the plain and by the fast forward, and why the latter was off."""
    pixels = pixels.to(next(model.parameters()).dtype)
    plain = model(pixel_values=pixels).logits
    with fast_forward(model, **options) as fast:
        logits = model(pixel_values=pixels).logits
    return plain, logits, fast.reason


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", ["vit", "dinov2"])
@pytest.mark.parametrize("name", ["squeeze", "depthwise"])
def test_a_module_that_does_not_say_it_is_tokenwise_turns_it_off(name, family, training, pixels):
    model = build(family, vpt=2, **{name: 3}).train(training)
    plain, logits, reason = both(model, pixels)
    assert torch.equal(plain, logits)
    assert reason == f"prompt module {name!r} does not say that it works token by token (is_tokenwise = True)"
    model.set_architecture({"vpt": [2] * 4})
    plain, logits, reason = both(model, pixels)
    assert reason is None, "it is active no more"
    torch.testing.assert_close(plain, logits, atol=1e-10, rtol=0)


def test_such_a_module_has_the_gains_that_leave_no_token_out(pixels):
    model = build(vpt=2, squeeze=3, lora=2)
    plain, logits, reason = both(model, pixels, prompts_as_keys=False, head_tokens_only=False)
    assert reason is None
    torch.testing.assert_close(plain, logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "why"), [("claims", "its outputs differ from those of the plain one"), ("depthwise_claims", "it ")]
)
def test_a_module_that_says_so_falsely_is_found_out(name, why, training, pixels):
    model = build(vpt=2, **{name: 3}).train(training)
    before = copy.deepcopy(model.state_dict())
    plain, logits, reason = both(model, pixels)
    assert torch.equal(plain, logits)
    assert reason.startswith(why)
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", ["other_dropout", "stated_noise"])
def test_noise_that_is_found_or_stated_is_drawn_for_each_sample(name, pixels):
    model = build(vpt=3, **{name: 3}).train()
    twice = pixels[:1].double().expand(2, -1, -1, -1)
    values = []
    projection = model.base_model.model.vit.layers[0].attention.k_proj
    with fast_forward(model, fuse_projections=False) as fast:
        model(pixel_values=twice)
        plain_forward = projection.forward
        projection.forward = lambda x: values.append(x) or plain_forward(x)
        model(pixel_values=twice)
        del projection.forward
        assert fast.reason is None
    tokens = values[-1]
    assert tokens.shape[:2] == (2, 3) and not torch.equal(tokens[0], tokens[1])
    plain, logits, reason = both(model.eval(), pixels)
    assert reason is None
    torch.testing.assert_close(plain, logits, atol=1e-10, rtol=0)


def test_noise_that_nobody_knows_of_turns_it_off_while_training(pixels):
    model = build(vpt=3, own_noise=3).eval()
    plain, logits, reason = both(model, pixels)
    assert reason is None
    torch.testing.assert_close(plain, logits, atol=1e-10, rtol=0)
    assert both(model.train(), pixels)[2].startswith("its outputs differ")


def test_a_comparison_changes_neither_random_numbers_nor_gradients(pixels):
    model = build(vpt=2, other_dropout=2, lora=2).train()

    def run():
        torch.manual_seed(0)
        logits = model(pixel_values=pixels.double()).logits
        model.zero_grad()
        logits.square().sum().backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with fast_forward(model):
        first, second = run(), run()
    torch.testing.assert_close(first, second, atol=1e-10, rtol=0)


class BatchNormed(nn.Module):
    """An MLP of the user's own, in place of the family's."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, width)

    def forward(self, x):
        return self.fc2(self.norm(self.fc1(x).transpose(1, 2)).transpose(1, 2).relu())


def test_a_part_of_the_users_own_inside_a_known_family_is_compared_too(pixels):
    base = make_model().double()
    for layer in base.vit.layers:
        layer.mlp = BatchNormed(24).double()
    plain, logits, reason = both(base.eval(), pixels)
    assert reason is None
    torch.testing.assert_close(plain, logits, atol=1e-10, rtol=0)
    base.train()(pixel_values=pixels.double())
    before = copy.deepcopy(base.state_dict())
    with fast_forward(base) as fast:
        fast.compare(pixel_values=pixels.double())
    assert fast.reason.startswith("its outputs differ")  # a mean over tokens, of which some are left out
    changed = [key for key, value in base.state_dict().items() if not torch.equal(value, before[key])]
    assert {key.rpartition(".")[2] for key in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(base.state_dict()[key] == before[key] + 1 for key in changed if key.endswith("tracked"))  # one call


# ------------------------------------------------------------------ families


LAYOUT = {
    "blocks": "layers",
    "attention_output": "attention.o_proj",
    "mlp_output": "mlp.fc2",
    "norm": "layernorm_before",
    "norm_after": "layernorm_after",
    "head_tokens": None,
}


def beit(**options):
    torch.manual_seed(0)
    settings = {"use_relative_position_bias": False, "use_absolute_position_embeddings": True, "drop_path_rate": 0.0}
    return BeitForImageClassification(BeitConfig(**SIZES, num_labels=5, **{**settings, **options})).eval()


@pytest.mark.parametrize("training", [False, True])
def test_a_family_whose_residual_scales_are_parameters_turns_it_off(training, pixels):
    register_backbone("beit", Backbone(**LAYOUT))
    model = build(base=beit(layer_scale_init_value=0.1), lora=2, adapter=2, vpt=2).train(training)
    plain, logits, reason = both(model, pixels)
    assert torch.equal(plain, logits)
    assert reason.startswith("its outputs differ from those of the plain one")


def test_one_without_such_scales_is_fast_and_equal(pixels):
    register_backbone("beit", Backbone(**LAYOUT))
    model = build(base=beit(layer_scale_init_value=0.0), lora=2, adapter=2, vpt=2)
    for training in (False, True):
        plain, logits, reason = both(model.train(training), pixels)
        assert reason is None
        torch.testing.assert_close(plain, logits, atol=1e-9, rtol=0)


def test_a_layer_that_drops_and_that_the_layout_leaves_out_turns_it_off_while_training(pixels):
    register_backbone("beit", Backbone(**LAYOUT))
    model = build(base=beit(layer_scale_init_value=0.0, drop_path_rate=0.5), lora=2)
    assert both(model.eval(), pixels)[2] is None
    assert both(model.train(), pixels)[2].startswith("its outputs differ")


def test_known_families_and_modules_are_not_compared(pixels):
    with fast_forward(build(lora=2, adapter=2, vpt=2)) as fast:
        assert fast.comparison is None


def test_a_compiler_takes_only_what_was_compared(pixels):
    register_backbone("beit", Backbone(**LAYOUT))
    model = build(base=beit(layer_scale_init_value=0.0), dtype=torch.float32, lora=2)
    with fast_forward(model) as fast, torch.inference_mode():
        torch.compile(model, backend="eager")(pixel_values=pixels)
        assert fast.reason == "a compiler sees the model before its fast forward was compared with the plain one"
        fast.compare(pixel_values=pixels)
        torch.compiler.reset()
        torch.compile(model, backend="eager")(pixel_values=pixels)
        assert fast.reason is None


# ------------------------------------------------------------------ check_backbone


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_check_backbone_names_every_site_of_a_known_family(family):
    model = make_model(family)
    before = copy.deepcopy(model.state_dict())
    report = check_backbone(model)
    assert report.problems == () and report.reason is None and report.num_blocks == 4
    linears = {"query", "key", "value", "output", "fc1", "fc2"}
    assert set(report.sites) == {*linears, "attention_output", "mlp_output", "norm"}
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)
    assert check_backbone(get_peft_model(model, NoahConfig())) == report


def test_check_backbone_gives_the_verdict_of_the_first_call(pixels):
    register_backbone("beit", Backbone(**LAYOUT))
    report = check_backbone(beit(layer_scale_init_value=0.1))
    assert report.problems == () and report.reason.startswith("its outputs differ")
    assert "fast_forward: off, its outputs differ" in str(report) and "mlp_output: mlp.fc2" in str(report)
    assert check_backbone(beit(layer_scale_init_value=0.0)).reason is None


def test_check_backbone_says_which_sites_are_wrong():
    register_backbone("beit", Backbone(**{**LAYOUT, "attention_output": "attention.dense", "mlp_output": "drop_path"}))
    report = check_backbone(beit())
    assert report.problems[0].startswith(
        "attention_output, 'attention.dense': there is no 'beit.layers.0.attention.dense'"
    )
    assert len(report.problems) == 1 and report.reason == "not all of its sites work"
    BACKBONES.pop("beit")
    register_backbone("beit", Backbone(**{**LAYOUT, "projections": {"query": "relative_position_bias"}}))
    assert "relative_position_bias" in check_backbone(beit()).problems[0]


def test_check_backbone_says_where_tokens_do_not_fit():
    register_backbone("beit", Backbone(**LAYOUT))
    report = check_backbone(beit(use_relative_position_bias=True))
    assert "lora and adapter and vpt together" in report.problems[0]


def test_check_backbone_refuses_what_is_not_registered():
    with pytest.raises(ValueError, match="no sites known for model_type 'beit'"):
        check_backbone(beit())
    register_backbone("beit", Backbone(**{**LAYOUT, "blocks": "stages"}))
    with pytest.raises(
        ValueError, match="keeps its blocks in 'stages', says its layout, but this model has none there"
    ):
        check_backbone(beit())

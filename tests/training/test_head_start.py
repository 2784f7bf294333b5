"""The start of the head in closed form, against ridge regression written plainly."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from peft import get_peft_model

from peft_noah import NoahConfig
from peft_noah.data.images import ImageSplit
from peft_noah.training import make_accelerator
from peft_noah.training.head_start import RIDGES, SCALES, fit_head, read_features, start_head


def ridge(x, y, penalty):
    """Weights and bias that minimise |xc w - yc|^2 + penalty |w|^2 on centred data."""
    mean, base = x.mean(0), y.mean(0)
    centred = x - mean
    weight = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(x.shape[1]).double(), centred.T @ (y - base))
    return weight.T, base - mean @ weight


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    return torch.randn(30, 8, generator=generator) + 2 * F.one_hot(labels, 8), labels


def test_the_fit_is_ridge_regression_of_the_scaled_logits(features):
    x, labels = features
    fit = fit_head(x, labels, 3)
    assert fit.ridge in RIDGES and fit.scale in SCALES
    penalty = fit.ridge * torch.linalg.svdvals(x.double() - x.double().mean(0))[0] ** 2
    weight, bias = ridge(x.double(), F.one_hot(labels, 3).double(), penalty)
    torch.testing.assert_close(fit.weight, (fit.scale * weight).float())
    torch.testing.assert_close(fit.bias, (fit.scale * bias).float())


def test_the_loss_is_that_of_each_image_predicted_without_it(features):
    x, labels = features
    fit = fit_head(x, labels, 3)
    penalty = fit.ridge * torch.linalg.svdvals(x.double() - x.double().mean(0))[0] ** 2
    y, predictions = F.one_hot(labels, 3).double(), []
    for image in range(len(x)):
        others = torch.arange(len(x)) != image
        weight, bias = ridge(x[others].double(), y[others], penalty)
        predictions.append(fit.scale * (weight @ x[image].double() + bias))
    loss = F.cross_entropy(torch.stack(predictions), labels).item()
    assert fit.loss == pytest.approx(loss, rel=1e-6)


def test_features_without_a_trace_of_the_classes_give_a_head_that_says_nothing():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(60, 40, generator=generator), torch.arange(60) % 3
    fit = fit_head(x, labels, 3)
    probabilities = F.softmax(x @ fit.weight.T + fit.bias, -1)
    assert probabilities.max() < 0.6  # a head without penalty would be sure of each of its training images


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        fit_head(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), 2)


def test_the_head_of_a_model_gets_the_fit_of_what_it_reads():
    labels = torch.arange(20) % 5
    noise = torch.randint(0, 20, (20, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = ImageSplit((labels.view(-1, 1, 1, 1) * 50 + noise).to(torch.uint8), labels)

    def normalize(pixels):
        return pixels.float() / 255 - 0.5

    model = get_peft_model(make_model(), NoahConfig()).train()
    head = model.base_model.model.classifier.modules_to_save["default"]
    x = read_features(model, head, images, normalize, make_accelerator())
    fit = start_head(model, head, images, normalize, make_accelerator())
    logits = model.eval()(pixel_values=normalize(images.__getitems__(range(20))["pixel_values"])).logits
    torch.testing.assert_close(logits, x @ fit.weight.T + fit.bias, atol=1e-3, rtol=1e-3)
    assert fit.accuracy > 0.8 and model.train().training

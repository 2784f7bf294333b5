"""Tiny models, and no network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several workers would wait for one another, spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers
from matplotlib.figure import Figure
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification
from warm_python import WarmPython

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
FAMILIES = {
    "vit": lambda **sizes: ViTForImageClassification(ViTConfig(**{**SIZES, **sizes}, num_labels=5)),
    "dinov2": lambda **sizes: Dinov2ForImageClassification(
        Dinov2Config(
            **{k: v for k, v in {**SIZES, **sizes}.items() if k != "intermediate_size"}, mlp_ratio=2, num_labels=5
        )
    ),
}


def make_model(family="vit", seed=0, **sizes):
    torch.manual_seed(seed)
    return FAMILIES[family](**sizes).eval()


def pytest_collection_finish():
    """Accelerate collects garbage after each training: half a tiny one's time, if it looks at all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def vit():
    return make_model()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def transformers_speaks():
    """The command line quietens transformers for its whole process; here many tests share one."""
    transformers.logging.set_verbosity_warning()


@pytest.fixture
def figures(monkeypatch):
    """The figures a test draws, kept for a look at what is in them."""
    kept, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        kept.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


@pytest.fixture(scope="session")
def python():
    """Starts processes as ``python`` does, but for the seconds that it takes to import torch."""
    warm = WarmPython()
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Folder of a task so small that a whole run takes seconds."""
    from tiny_runs import write_task  # it imports the command line

    return write_task(tmp_path_factory.mktemp("data") / "task")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Folder of a ViT with random weights."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    make_model().save_pretrained(folder)
    return folder

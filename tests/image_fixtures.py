"""Fixtures for tests that read images; a test file asks for them by `pytest_plugins = ["image_fixtures"]`."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from image_files import write_backbone

from peft_noah.data import Preprocessing


@pytest.fixture
def hf_cache(tmp_path_factory, monkeypatch):
    """Keep what datasets caches below the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


@pytest.fixture
def backbone_config(tmp_path, hf_cache) -> Path:
    """Folder of a ViT for images of SIDE x SIDE pixels: its config only, which is all that preprocessing reads."""
    return write_backbone(tmp_path / "backbone")


@pytest.fixture
def preprocessing(backbone_config) -> Preprocessing:
    """What that ViT expects: bilinear resizing, mean and std 0.5."""
    return Preprocessing.from_backbone(backbone_config)

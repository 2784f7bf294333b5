"""Designs: plain data with bounds."""

import pytest

from peft_noah import Architecture
from peft_noah.searching.design import Design


def test_a_design_makes_an_architecture_of_any_number_of_blocks():
    design = Design("mix", {"lora": 2, "adapter": [0, 4, 4]}, {"lora_scale": 4.0})
    assert design.architecture(3) == Architecture(lora=[2, 2, 2], adapter=[0, 4, 4])
    with pytest.raises(ValueError, match="has 3 dims in row 'adapter', but this backbone has 4 blocks"):
        design.architecture(4)


def test_a_file_keeps_it(tmp_path):
    design = Design("mix", {"lora": 2, "adapter": [0, 4]}, {"target_modules": ["fc1"]}, head_start=True, prior=0.01)
    design.save(tmp_path / "design.json")
    assert Design.load(tmp_path / "design.json") == design
    (tmp_path / "short.json").write_text('{"name": "a", "dims": {"lora": 8}}')
    assert Design.load(tmp_path / "short.json") == Design("a", {"lora": 8})


@pytest.mark.parametrize(
    "text",
    ['{"name": "", "dims": {"lora": 8}}', '{"name": "a", "dims": {"lora": -8}}', '{"name": "a", "dims": {}}', "[]"]
    + ['{"name": "a", "dims": {"lora": 8}, "prior": 2}', '{"name": "a", "dims": {"lora": 8}, "rank": 2}']
    + [
        '{"name": "a", "dims": {"lora": 8}, "head_start": 1}',
        '{"name": "a", "dims": [8]}',
        '{"name": "a", "dims": {"lora": "8"}}',
    ],
)
def test_a_file_that_holds_something_else_is_refused_with_its_name(text, tmp_path):
    (tmp_path / "design.json").write_text(text)
    with pytest.raises(ValueError, match="design.json does not hold a design"):
        Design.load(tmp_path / "design.json")

"""What the rows of an architecture are called in tables and figures."""

from peft_noah.tuner.labels import architecture_table, module_colour, module_label


def test_a_row_is_called_what_its_module_says_with_what_its_dims_count():
    assert [module_label(name) for name in ("lora", "adapter", "vpt", "mine")] == [
        "LoRA (rank)",
        "Adapter (width)",
        "VPT (tokens)",
        "mine",
    ]
    assert module_colour("mine") is None and module_colour("lora") == "#0072B2"


def test_a_table_of_an_architecture_has_a_row_per_module_and_a_column_per_block():
    assert architecture_table({"vpt": (0, 10), "lora": (8, 4)}).splitlines() == [
        "| block        |   1 |   2 |",
        "| ------------ | --: | --: |",
        "| LoRA (rank)  |   8 |   4 |",
        "| VPT (tokens) |   0 |  10 |",
    ]

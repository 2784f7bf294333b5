"""How names, numbers and tables are written."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from peft_noah.formatting import (
    code,
    escape,
    facts,
    module_order,
    one_line,
    percent,
    table,
)

MARKDOWN = MarkdownIt("commonmark").enable("table")
# Everything Markdown or HTML gives a meaning to, more often than a random text has it.
HOSTILE = st.text(st.sampled_from("ab `*_[]()<>|\\~$#!&;-+=\n\r\t:.0'\"") | st.characters(), max_size=30)

# The package itself imports torch, so the modules are looked at under an empty package of the same name.
LIGHT = """
import importlib, sys, types
package = types.ModuleType("peft_noah")
package.__path__ = [{path!r}]
sys.modules["peft_noah"] = package
importlib.import_module("peft_noah.results.{name}")
heavy = {{"torch", "transformers", "peft", "datasets", "evaluate", "matplotlib", "rich", "numpy"}} & set(sys.modules)
sys.exit(", ".join(heavy) or 0)
"""


def inline_types(text: str) -> set[str]:
    """Kinds of all tokens in a Markdown text."""
    return {child.type for token in MARKDOWN.parse(text) for child in (token, *(token.children or ()))}


def shown(text: str) -> str:
    """The characters a reader of a Markdown paragraph sees."""
    return "".join(child.content for token in MARKDOWN.parse(text) for child in token.children or ())


@pytest.mark.parametrize("name", ["plotting", "report", "card"])
def test_results_are_read_and_written_without_importing_torch_or_drawing_libraries(name):
    import peft_noah

    script = LIGHT.format(path=peft_noah.__path__[0], name=name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@given(HOSTILE)
def test_an_escaped_text_is_shown_as_it_is_and_means_nothing(text):
    line = f"x {escape(text)} y"
    assert inline_types(line) <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    assert shown(line).split() == ["x", *one_line(text).split(), "y"]


@given(HOSTILE)
def test_a_code_span_holds_its_text_and_nothing_else(text):
    tokens = MARKDOWN.parseInline(f"x {code(text)} y")[0].children
    assert [token.type for token in tokens] == ["text", "code_inline", "text"]
    assert tokens[1].content.strip() == one_line(text)


@given(st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=4))
def test_a_table_has_the_cells_it_was_given_whatever_they_hold(rows):
    text = table(["name", "value"], [[escape(name), code(value)] for name, value in rows])
    tokens = MARKDOWN.parse(text)
    assert sum(token.type == "td_open" for token in tokens) == 2 * len(rows)
    cells = [token.children for token in tokens if token.type == "inline"][2:]
    names = ["".join(child.content for child in children) for children in cells[::2]]
    assert [name.split() for name in names] == [one_line(name).split() for name, _ in rows]


@given(st.text())
def test_one_line_is_printable_and_can_be_written_as_utf8(text):
    line = one_line(text)
    assert line.isprintable()
    assert one_line(line) == line
    line.encode()


def test_one_line_drops_what_would_turn_the_text_around():
    assert one_line("a\u202eb\x1b[31m\nc\ud800") == "a b [31m c"


def test_modules_are_shown_in_one_order():
    assert module_order(["ssf", "vpt", "adapter", "lora", "bias"]) == ["lora", "adapter", "vpt", "bias", "ssf"]


def test_facts_are_a_list_that_a_person_reads():
    values = {
        "budget": 640_000,
        "seed": 0,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "amp": False,
        "size": [64, 64],
        "sizes": {"train": 800, "test": 2000},
        "crop": None,
        "space": {"lora": [1, 5]},
        "labels": ["a"] * 31,
        "empty": [],
    }
    assert facts(values).splitlines() == [
        "- budget: 640,000",
        "- seed: 0",
        "- batch size: 64",
        "- learning rate: 0.001",
        "- amp: no",
        "- size: 64, 64",
        "- sizes: train 800, test 2000",
        "- crop: none",
        '- space: `{"lora": [1, 5]}`',
        f"- labels: {', '.join('a' * 30)}, ... (31 in all)",
        "- empty: `[]`",
    ]


def test_accuracies_are_in_percent_with_one_decimal():
    assert percent(0.8449) == "84.5"
    assert percent(0.8449, 0.00321) == "84.5 ± 0.3"


def test_facts_of_facts_stand_in_one_line():
    values = {"images": {"train": {"images": 9, "fewest per class": 3}, "test": {"images": 12_000}}}
    assert facts(values) == "- images: train (images 9, fewest per class 3); test (images 12,000)"

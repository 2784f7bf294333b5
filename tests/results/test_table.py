"""Tables in four formats: numbers as they are, names literally, nothing of a name's own."""

from __future__ import annotations

import csv
import io
import re

import pytest
from rich.console import Console

from peft_noah.results.table import Number, Table, latex

TABLE = Table(
    "name",
    "A title",
    ("task", "a", "b"),
    (
        ("first", Number(12.345, 0.678, bold=True), None),
        ("second", Number(-0.04, 0.1, signed=True), Number(1234, decimals=0)),
    ),
    ("A note.",),
    (1,),
)
HOSTILE = [
    "a|b", "**x**", "<b>x</b>", "[x](http://y)", "\\input{/etc/passwd}", "50 % of $x_1^2$ & #{~}", "[bold red]x[/]",
    "a\nb", "\x1b[31mx", '"q","r"', "=1+1", "@SUM(A1)", "`x`", "\\\\[9cm]", "*", "é – ± †",
]  # fmt: skip


def test_markdown_holds_numbers_errors_bold_and_dashes():
    assert TABLE.to_markdown() == (
        "## A title\n\n"
        "| task   |              a |     b |\n"
        "| ------ | -------------: | ----: |\n"
        "| first  | **12.3 ± 0.7** |     – |\n"
        "| second |      0.0 ± 0.1 | 1,234 |\n\n"
        "A note.\n"
    )


def test_latex_has_the_rules_of_booktabs():
    assert TABLE.to_latex() == (
        "\\begin{table}\n\\centering\n\\caption{A title}\n\\begin{tabular}{lrr}\n\\toprule\n"
        "task & a & b \\\\\n\\midrule\n"
        "first & {\\boldmath\\textbf{12.3 $\\pm$ 0.7}} & -- \\\\\n\\midrule\n"
        "second & 0.0 $\\pm$ 0.1 & 1,234 \\\\\n\\bottomrule\n\\end{tabular}\n"
        "\\par\\smallskip{\\footnotesize A note.\\par}\n\\end{table}\n"
    )


def test_csv_holds_full_numbers_with_errors_in_their_own_columns():
    assert TABLE.to_csv() == "task,a,a s.e.,b\nfirst,12.345,0.678,\nsecond,-0.04,0.1,1234\n"


def test_the_terminal_shows_the_same_cells():
    console = Console(file=io.StringIO(), width=80)
    console.print(TABLE.to_rich())
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["first", "12.3", "±", "0.7", "–"] in lines and ["second", "0.0", "±", "0.1", "1,234"] in lines
    assert ["A", "note."] in lines


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number(3.14159), "3.1"),
        (Number(2.0, 0.25, signed=True), "+2.0 ± 0.2"),
        (Number(-2.0, signed=True), "−2.0"),
        (Number(-0.001, signed=True), "0.0"),
        (Number(85_800_000, decimals=0), "85,800,000"),
        (Number(50.0, 1.0, mark=" †"), "50.0 ± 1.0 †"),
    ],
)
def test_a_number_is_written_with_its_error_sign_and_mark(number, text):
    assert str(number) == text


def hostile_table(name: str) -> Table:
    return Table(name, name, (name, name), ((name, Number(1.5, 0.5, mark=name)), (name, None)), (name,))


@pytest.mark.parametrize("name", HOSTILE)
def test_csv_survives_a_round_trip_and_runs_no_formula(name):
    plain = " ".join(name.replace("\x1b", " ").split())
    guarded = f"'{plain}" if plain[0] in "=+-@" else plain
    rows = list(csv.reader(io.StringIO(hostile_table(name).to_csv())))
    assert rows == [[guarded, guarded, f"{guarded} s.e."], [guarded, "1.5", "0.5"], [guarded, "", ""]]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_opens_nothing_in_markdown(name):
    text = hostile_table(name).to_markdown()
    lines = text.splitlines()
    assert len(lines) == 8
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[2:6])
    assert "<" not in text and not re.search(r"(?<!\\)[*`\[\]_$]", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_printed_literally_by_latex(name):
    lines = hostile_table(name).to_latex().splitlines()
    assert len(lines) == 13
    rows = [lines[5], *lines[7:9]]
    for line in rows:
        assert line.endswith(r" \\")
        body = line.removesuffix(r" \\")
        assert not body.lstrip().startswith(("[", "*"))
        # Only our own commands, no bare special sign, and braces that match.
        commands = set(re.findall(r"\\([a-zA-Z]+)", body))
        assert commands <= {"textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar",
                            "textquotedbl", "pm", "dagger", "ddagger"}  # fmt: skip
        bare = re.sub(r"\\[a-zA-Z]+|\\[&%$#_{}]|\$(\\pm|\\dagger|-)\$", "", body)
        assert "\\" not in bare and not set("%#_^~") & set(bare) and "$" not in bare.replace("$$", "")
        assert bare.count("{") == bare.count("}") and bare.count("&") == 1


def test_what_latex_cannot_print_as_it_is_becomes_a_command():
    assert latex("50 % of a_b") == "50 \\% of a\\_b"
    assert latex("\\x{~^}") == r"\textbackslash{}x\{\textasciitilde{}\textasciicircum{}\}"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_brings_no_markup_to_the_terminal(name):
    console = Console(file=io.StringIO(), width=120)
    console.print(hostile_table(name).to_rich())
    assert " ".join(name.replace("\x1b", " ").split()) in console.file.getvalue()

"""README and docs/ show what is there: links, code, commands, options and public names."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml
from image_files import bundle_few

import peft_noah
from peft_noah.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/*.md"))]
LINKED = [*PAGES, *sorted(ROOT.glob("results/**/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]
COMMANDS = typer.main.get_command(app).commands
#: options of other programs and of the scripts in benchmarks/ and examples/
FOREIGN = {"--help", "--quick", "--only", "--dynamo_backend", "--node_rank"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# ---------------------------------------------------------------------- parts of a page


def blocks(page, language):
    """Code in fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def prose(page):
    """What is outside of fences."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """The words of each `peft-noah` command in shell fences, as a shell passes them on."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for found in re.findall(r"(?:peft-noah|-m peft_noah) ([^;&|)]+)", line):
                yield shlex.split(re.sub(r"\$\w+", "0", found), comments=True)


# ---------------------------------------------------------------------- links


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_links_every_page():
    readme = (ROOT / "README.md").read_text()
    assert [page for page in map(name_of, PAGES[1:]) if f"]({page})" not in readme] == []


def test_the_readme_stays_a_front_page():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


# ---------------------------------------------------------------------- Python


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


@each_page
def test_python_compiles_and_imports_what_is_there(page):
    for block in blocks(page, "python"):
        for module, name in imports(ast.parse(block)):
            found = importlib.import_module(module)
            assert name is None or hasattr(found, name), f"{module}.{name}"


RUNNABLE = [
    pytest.param(block, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"<!-- a test runs this .*?-->\n```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
]


def test_the_readme_and_the_page_on_extending_have_code_that_runs():
    assert len(RUNNABLE) >= 3


@pytest.mark.parametrize("block", RUNNABLE)
def test_code_that_is_said_to_run_runs(block, python, tmp_path):
    few = bundle_few(tmp_path / "task") if "bundled_task" in block else ""
    done = python.run("-c", few + block, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


PLUGINS = {
    **{case.id: case.values[0] for case in RUNNABLE if re.search(r"^class ", case.values[0], re.M)},
    **{name: (ROOT / "examples" / name).read_text() for name in ("add_backbone.py", "add_prompt_module.py")},
}


@pytest.mark.parametrize("code", PLUGINS.values(), ids=PLUGINS)
def test_an_example_that_is_imported_as_a_plugin_defines_and_registers_and_does_no_more(code):
    docstring, *rest = ast.parse(code).body if code.startswith('"""') else (None, *ast.parse(code).body)
    done = [node for node in rest if not isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef))]
    assert ast.unparse(done.pop()).startswith("if __name__ == '__main__':")
    assert all(ast.unparse(node).startswith("register_") for node in done)


# ---------------------------------------------------------------------- the command line


@each_page
def test_every_command_parses(page):
    for words in commands(page):
        command = COMMANDS[words[0]]
        try:
            command.make_context(words[0], words[1:])
        except click.exceptions.Exit:  # of --help
            pass


def test_the_pages_show_every_command():
    shown = {words[0] for page in PAGES for words in commands(page)}
    named = set(re.findall(r"`(?:peft-noah )?([a-z]+)\b[^`]*`", "".join(map(prose, PAGES))))
    assert set(COMMANDS) <= shown | named


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_option_in_the_text_is_one(page):
    options = {
        option for command in COMMANDS.values() for p in command.params for option in (*p.opts, *p.secondary_opts)
    }
    for code in re.findall(r"`([^`]+)`", prose(page)):
        words = code.split()
        if words[0] == "peft-noah" and len(words) > 1:
            assert words[1] in {*COMMANDS, "--help"}, code
        if words[0] == "peft-noah" or words[0].startswith("--"):
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options | FOREIGN, code


# ---------------------------------------------------------------------- the overview of the API


def overview():
    """The names that docs/api.md lists, by the modules of their section."""
    sections = re.split(r"^## ", (ROOT / "docs" / "api.md").read_text(), flags=re.M)[1:]
    titles = {section: tuple(re.findall(r"`(peft_noah[\w.]*)`", section.partition("\n")[0])) for section in sections}
    return {modules: re.findall(r"^\| `(\w+)` \|", section, re.M) for section, modules in titles.items() if modules}


def test_every_name_of_the_overview_exists():
    for modules, names in overview().items():
        found = [importlib.import_module(module) for module in modules]
        assert names and [name for name in names if not any(hasattr(module, name) for module in found)] == []


def test_every_public_name_is_in_the_overview():
    for module in ("peft_noah", "peft_noah.training", "peft_noah.fast", "peft_noah.data"):
        assert sorted(overview()[(module,)]) == sorted(importlib.import_module(module).__all__)


def test_the_citation_and_the_changelog_know_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == peft_noah.__version__ and "2206.04673" in citation["references"][0]["url"]
    assert f"## {peft_noah.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# ---------------------------------------------------------------------- the picture


def test_the_front_pages_picture_is_drawn_from_committed_results(python, tmp_path):
    done = python.run(ROOT / "docs" / "picture.py", tmp_path / "picture.png")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "picture.png").stat().st_size > 20_000

"""Imports point one way: between the folders of the package, and between its files."""

import ast
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import peft_noah

ROOT = Path(peft_noah.__file__).parent
#: each folder imports from those before it alone; files beside the folders are the plain ground
FOLDERS = ("", "tuner", "fast", "data", "training", "searching", "results", "run", "experiments", "cli")
#: they hand on names of all folders, or start the command line
DOORS = ("__init__", "__main__")


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in ROOT.rglob("*.py") if module_of(path) not in DOORS}


def imported(path):
    """The package's modules that a file imports, anywhere in it, also for its types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from {name.removeprefix("peft_noah.") for name in names if name.startswith("peft_noah.")} & FILES.keys()


def folder_of(module):
    return module.split(".")[0] if (ROOT / module.split(".")[0]).is_dir() else ""


def test_folders_import_from_those_below_them_alone():
    wrong = {
        f"{module} imports {other}"
        for module, path in FILES.items()
        for other in imported(path)
        if FOLDERS.index(folder_of(other)) > FOLDERS.index(folder_of(module))
    }
    assert not wrong


def test_the_tuner_knows_no_image_and_no_run():
    known = {
        folder_of(other) for module, path in FILES.items() if folder_of(module) == "tuner" for other in imported(path)
    }
    assert known == {"", "tuner"}


def test_no_files_import_each_other():
    TopologicalSorter({module: set(imported(path)) - {module} for module, path in FILES.items()}).prepare()


def test_every_name_that_is_imported_is_there_also_inside_of_functions():
    missing = set()
    for path in (
        *ROOT.rglob("*.py"),
        *(ROOT.parent / "examples").glob("*.py"),
        *(ROOT.parent / "benchmarks").rglob("*.py"),
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "peft_noah":
                module = importlib.import_module(node.module)
                missing |= {
                    f"{path}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name)
                    and not (hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{alias.name}"))
                }
    assert not missing


def test_the_plain_ground_imports_no_torch():
    for module, path in FILES.items():
        if folder_of(module) == "":
            names = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            names |= {
                node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
            }
            assert not {name.partition(".")[0] for name in names} & {"torch", "peft", "transformers", "numpy"}, module


def test_no_file_but_its_own_knows_a_prompt_module_by_name():
    names = {"Lora", "Adapter", "Vpt"}
    for module, path in FILES.items():
        if not module.startswith("tuner.prompts"):
            used = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
            used |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not {name for name in used if name in names or name in ("noah_lora", "noah_adapter", "noah_vpt")}, (
                path
            )


def test_fixtures_that_many_files_share_have_names_of_their_own():
    """The one of conftest.py hides that of a plugin, also in the files that ask for the plugin."""

    def fixtures(name):
        functions = ast.walk(ast.parse((Path(__file__).parent / name).read_text()))
        return {
            function.name
            for function in functions
            if isinstance(function, ast.FunctionDef) and "fixture" in "".join(map(ast.dump, function.decorator_list))
        }

    assert fixtures("conftest.py") and fixtures("image_fixtures.py")
    assert not fixtures("conftest.py") & fixtures("image_fixtures.py")

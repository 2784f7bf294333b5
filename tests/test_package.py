"""What a user installs: the wheel's content, the lower bounds, registration, and the committed results."""

import ast
import copy
import multiprocessing
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from peft import PeftType

import peft_noah
from peft_noah.experiments.output import write_tables
from peft_noah.experiments.result_files import load_reports
from peft_noah.formatting import percent
from peft_noah.results.report import RunReport
from peft_noah.results.statistics import mean_and_standard_error

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


def declared():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line.strip()]


def test_every_dependency_has_a_lower_bound_and_meets_it_here():
    for requirement in declared():
        assert [spec.operator for spec in requirement.specifier if spec.operator != "!="] == [">="], requirement
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement


def test_the_transformers_that_asks_for_an_unreleased_peft_is_not_installed():
    transformers = next(requirement for requirement in declared() if requirement.name == "transformers")
    assert not transformers.specifier.contains("5.24.0") and transformers.specifier.contains("5.24.1")


def test_every_import_of_the_package_is_declared():
    names = {requirement.name for requirement in declared()} | {"peft_noah"}
    aliases = {"PIL": "pillow", "yaml": "pyyaml", "numpy": "datasets", "pyarrow": "datasets"}
    for path in (ROOT / "peft_noah").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [node.module] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in {name.partition(".")[0] for name in imported if name} - sys.stdlib_module_names:
                assert aliases.get(module, module) in names, f"{path.name} imports {module}"


def test_a_wheel_holds_what_the_main_job_needs(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    wheel = next(tmp_path.glob("peft_noah-*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "peft_noah/py.typed",
        "peft_noah/assets/released_subnets.json",
        "peft_noah/assets/vit-tiny-64/model.safetensors",
        "peft_noah/assets/vit-tiny-64/config.json",
        "peft_noah/assets/vit-tiny-64/preprocessor_config.json",
        "peft_noah/assets/fashion_mnist/train.parquet",
        "peft_noah/assets/fashion_mnist/validation.parquet",
        "peft_noah/assets/fashion_mnist/test.parquet",
        "peft_noah/assets/fashion_mnist/LICENSE",
        "peft_noah/tuner/prompts/vpt.py",
    } <= names
    assert not any(name.startswith(("tests/", "examples/", "results/")) for name in names)


def test_architectures_and_search_import_no_torch():
    code = (
        "import sys, types; package = types.ModuleType('peft_noah'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['peft_noah'] = package; import peft_noah.searching.evolution, peft_noah.search_space; "
        "assert not {'torch', 'numpy', 'peft', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT / "peft_noah")], check=True)


def test_registering_twice_changes_nothing():
    before = list(PeftType)
    peft_noah.tuner.registration.register()
    assert list(PeftType) == before and before.count("NOAH") == 1


def test_the_member_survives_pickle_and_copies():
    member = PeftType("NOAH")
    assert member is PeftType.NOAH
    assert pickle.loads(pickle.dumps(member)) is member is copy.deepcopy(member)


def _config_type(config):
    return config.peft_type


def test_a_config_reaches_a_spawned_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_config_type, (peft_noah.NoahConfig(),)) == "NOAH"


def test_ci_runs_the_test_command_of_the_readme(tmp_path):
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```bash\n(python.*)\n```", readme)
    assert command and "pytest" in command[1]
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    for code in (0, 3):  # the script runs what stands there, in its own folder, and ends as it does
        told = f"python3 -c 'import os; print(os.getcwd()); raise SystemExit({code})'"
        (tmp_path / "README.md").write_text(readme.replace(command[1], told))
        done = subprocess.run(["bash", script], capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()) == (code, [told, os.path.realpath(tmp_path)])


def test_the_results_page_shows_the_committed_runs():
    page, reports = (ROOT / "docs" / "results.md").read_text(), load_reports(RESULTS / "fashion_mnist" / "runs.jsonl")
    labels = {"linear": "linear probe", "lora": "LoRA, rank 8", "adapter": "Adapter, width 8", "vpt": "VPT, 10 tokens"}
    labels |= {f"noah {how}": f"NOAH {how}" for how in ("inherited", "retrained", "continued")}
    for method, label in labels.items():
        values = [next(r.test for r in report.results if r.method == method) for report in reports]
        mean, error = mean_and_standard_error([100 * value for value in values])
        row = next(line for line in page.splitlines() if line.startswith(f"| {label}"))
        assert f"{mean:.1f} ± {error:.1f}" in row


def test_version_is_one():
    assert peft_noah.__version__ == version("peft-noah")


SUITES = sorted(RESULTS.glob("*/cells.jsonl"))


@pytest.mark.parametrize("cells", SUITES, ids=lambda cells: cells.parent.name)
def test_committed_tables_are_those_of_the_committed_cells(cells, tmp_path):
    write_tables(cells, tmp_path)
    committed = cells.parent / "tables"
    assert (committed / "tables.md").read_bytes() == (tmp_path / "tables.md").read_bytes()
    # other versions of matplotlib draw other bytes
    assert {path.name for path in committed.glob("*.png")} == {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.parametrize("runs", sorted(RESULTS.glob("*/runs.jsonl")), ids=lambda runs: runs.parent.name)
def test_a_committed_table_over_seeds_is_that_of_the_committed_runs(runs):
    assert RunReport.over_seeds(load_reports(runs)).to_markdown() == (runs.parent / "results.md").read_text()


def test_the_committed_table_of_efforts_shows_the_committed_cells():
    estimates = runpy.run_path(str(ROOT / "examples" / "effort.py"))["estimates"]
    rows = [line.split("|") for line in (RESULTS / "effort" / "effort.md").read_text().splitlines() if "±" in line]
    shown = [[part.strip() for part in row[1:-1]] for row in rows if len(row) > 5]
    for method, effort, _, *accuracies in shown:
        name = f"{'lora' if method == 'lora' else 'noah'}-{effort}.jsonl"
        found = estimates(RESULTS / "effort" / name, method).values()
        assert accuracies == [percent(e.mean, e.error) for e in found]
    assert len(shown) == 11


def test_the_results_page_shows_the_tables_as_they_came_out():
    page = (ROOT / "docs" / "results.md").read_text()
    tables = (RESULTS / "tasks_vit_tiny_64" / "tables" / "tables.md").read_text()
    rows = tables.partition("\n## Table 1")[2].partition("\n## ")[0].splitlines()
    rows = [row for row in rows if row.startswith("|")]
    assert len(rows) == 14 and [row for row in rows if row not in page] == []
    assert (RESULTS / "effort" / "effort.md").read_text().partition("\n\n")[0] in page

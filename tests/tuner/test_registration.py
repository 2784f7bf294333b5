"""NOAH is known to PEFT in whatever order the two are imported, and nothing heavy is imported before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "numpy",
    "peft",
    "transformers",
    "datasets",
    "evaluate",
    "accelerate",
    "matplotlib",
    "huggingface_hub",
}
KNOWN = "from peft import PeftType; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; import sys; "
KNOWN += "assert known[PeftType('NOAH')].__name__ == 'NoahConfig', known; "
KNOWN += "assert not [f for f in sys.meta_path if type(f).__name__ == '_Watch']; "


def run(code, *arguments):
    done = subprocess.run([sys.executable, *(arguments or ("-c", code))], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import peft_noah",
        "import peft_noah.searching.result, peft_noah.architecture, peft_noah.results.report, peft_noah.jsonfile",
        "import peft_noah; assert 'NoahConfig' in dir(peft_noah) and callable(peft_noah.search)",
        "from peft_noah.cli import main; sys.argv = ['peft-noah', '--help']; main()",
        "from peft_noah.cli import main; sys.argv = ['peft-noah', 'run', '--help']; main()",
    ],
)
def test_light_uses_import_nothing_heavy(code):
    end = f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    run(f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n{end}")


def test_with_peft_loaded_first_the_package_registers_and_adds_only_its_own_modules():
    others = HEAVY | {"pyarrow", "pandas", "rich", "typer"}
    code = "import peft, sys; before = set(sys.modules); import peft_noah; peft_noah.NoahConfig; peft_noah.NoahModel; "
    code += f"new = set(sys.modules) - before; assert not {others!r} & new, {others!r} & new; " + KNOWN
    run(code)


@pytest.mark.parametrize(
    "imports",
    [
        # the package's own module is what brings PEFT in, half executed while PEFT becomes ready
        "from peft_noah.tuner.layer import NoahLayer; ",
        # what looks for PEFT without importing it; what imports a part of it; a second import of this package
        "import peft_noah; from transformers.utils import is_peft_available; assert is_peft_available(); "
        "import importlib; importlib.reload(peft_noah); from peft.utils import infer_device; ",
    ],
)
def test_noah_is_known_whatever_is_imported_first(imports):
    run(imports + KNOWN + "assert type(sys.modules['peft'].__loader__).__name__ == 'SourceFileLoader'")


FAKE = """
import pathlib, sys, tempfile, threading
import peft_noah
from peft_noah.tuner import registration

calls = []
registration.register = lambda: calls.append("registered")
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "peft.py").write_text("{peft}")
sys.path.insert(0, str(folder))
"""


def test_an_import_of_peft_that_fails_is_seen_again_when_it_succeeds():
    code = FAKE.format(peft="import sys; sys.ready") + (
        "try:\n    import peft\nexcept AttributeError:\n    pass\n"
        "assert calls == [] and 'peft' not in sys.modules\n"
        "sys.ready = True\nimport peft\nassert calls == ['registered']\n"
        "import importlib; importlib.reload(peft); assert calls == ['registered']\n"
    )
    run(code)


def test_threads_that_import_peft_at_once_register_once():
    code = FAKE.format(peft="import time; time.sleep(0.2)") + (
        "threads = [threading.Thread(target=__import__, args=('peft',)) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\nassert calls == ['registered'], calls\n"
    )
    run(code)


def test_python_dash_m_shows_the_help():
    assert "Usage" in run("", "-m", "peft_noah", "--help")

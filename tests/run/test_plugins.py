"""Python modules of a user's own on the command line: ``--plugin``, what keeps it, and who must name it again."""

import importlib
import json
import sys

import pytest
from conftest import make_model
from tiny_runs import SMALL, invoke, write_task

from peft_noah.plugins import import_plugins, read_plugin_names
from peft_noah.run import registry
from peft_noah.run.heats import run_heat
from peft_noah.run.settings import RunSettings
from peft_noah.tuner.backbones import BACKBONES
from peft_noah.tuner.prompts import PROMPT_MODULES

PLUGIN = '''
from torch import nn

from peft_noah import PromptModule, register_prompt_module
from peft_noah.run.methods import single_module
from peft_noah.run.registry import register_method


@register_prompt_module
class Tilt(PromptModule):
    """``y' = y + x_mean * tilt`` of the MLP."""

    name = "tilt"
    site = "mlp_output"
    is_tokenwise = True
    alone = 2

    def shapes(self, dim):
        return {"tilt": (dim, self.out_features)}

    def reset_parameters(self, config):
        nn.init.zeros_(self.tilt)

    def forward(self, x, y):
        return y + (x.mean(-1, keepdim=True) * self.active("tilt").sum(0)).to(y.dtype)


register_method(single_module("tilt", "tilts"))
'''


def forget():
    """As in a new process."""
    PROMPT_MODULES.pop("tilt", None)
    registry._methods.pop("tilt", None)
    for name in ("own_modules", "own_modules.tilt"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder with a package that nobody has installed, a backbone and a task; and a finished run."""
    folder, path = tmp_path_factory.mktemp("work"), list(sys.path)
    (folder / "own_modules").mkdir()
    (folder / "own_modules" / "__init__.py").touch()
    (folder / "own_modules" / "tilt.py").write_text(PLUGIN)
    (folder / "own_modules" / "broken.py").write_text("import nowhere_at_all\n")
    make_model().save_pretrained(folder / "vit")
    write_task(folder / "task")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    forget()
    sys.path[:] = path


def start(*options):
    return invoke("supernet", "--model", "vit", "--dataset", "task", *SMALL, *options)


@pytest.fixture(scope="module")
def finished(work):
    for done in (
        start("--plugin", "own_modules.tilt", "--output", "run"),
        invoke("baseline", "run", "--method", "tilt", "--plugin", "own_modules.tilt"),
    ):
        assert done.exit_code == 0, done.output
    return work / "run"


def test_a_run_keeps_what_was_imported_for_it_in_settings_adapters_and_cards(finished):
    assert json.loads((finished / "settings.json").read_text())["plugins"] == ["own_modules.tilt"]
    results = json.loads((finished / "results.json").read_text())
    assert results["settings"]["plugins"] == ["own_modules.tilt"] and results["results"][0]["method"] == "tilt"
    config = json.loads((finished / "adapter-tilt" / "adapter_config.json").read_text())
    assert config["plugins"] == {"tilt": "own_modules.tilt"} and config["architecture"] == {"tilt": [2] * 4}
    assert "import own_modules.tilt  # registers tilt\n" in (finished / "adapter-tilt" / "README.md").read_text()
    assert "plugins" not in json.loads((finished / "supernet" / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    "command",
    [
        ("baseline", "run", "--method", "tilt"),
        ("evaluate", "run/adapter-tilt", "--model", "vit", "--dataset", "task"),
        ("predict", "run/adapter-tilt", "images", "--model", "vit"),
    ],
    ids=lambda command: command[0],
)
def test_a_later_command_imports_it_where_it_is_named_again_and_never_by_itself(command, finished):
    images = finished.parent / "images"
    images.mkdir(exist_ok=True)
    from PIL import Image

    Image.new("RGB", (16, 16)).save(images / "black.png")
    forget()
    alone = invoke(*command)
    assert "own_modules.tilt" not in sys.modules
    said = " ".join(alone.output.split())
    assert alone.exit_code == 2 and ("--plugin own_modules.tilt" in said or "own needs --plugin" in said), said
    again = invoke(*command, "--plugin", "own_modules.tilt")
    assert again.exit_code == 0, again.output


def test_one_process_of_a_suite_or_of_a_race_imports_it_as_another_does(work):
    forget()
    words = (
        "suite",
        "tasks",
        "--model",
        "vit",
        "--methods",
        "tilt",
        "--seeds",
        "0",
        "--output",
        "suite",
        "--epochs",
        "1",
    )
    (work / "tasks").mkdir()
    write_task(work / "tasks" / "red")
    done = invoke(*words, "--plugin", "own_modules.tilt")
    assert done.exit_code == 0, done.output
    assert json.loads((work / "suite" / "suite.json").read_text())["run"]["plugins"] == ["own_modules.tilt"]
    forget()
    assert invoke("progress", "suite").exit_code == 2
    assert invoke("progress", "suite", "--plugin", "own_modules.tilt").exit_code == 0
    assert invoke(*words, "--plugin", "own_modules.tilt").exit_code == 0
    forget()
    with pytest.raises(KeyError, match="design"):  # before anything else is read
        run_heat({"settings": {"plugins": ["own_modules.tilt"]}})
    assert "tilt" in PROMPT_MODULES


def test_what_cannot_be_imported_is_said_in_a_sentence(work):
    for name, said in (
        (
            "own_modules.nothing",
            "plugin 'own_modules.nothing' is not there: Python finds no module 'own_modules.nothing'",
        ),
        ("nobodys.thing", "Python finds no module 'nobodys'"),
        ("own_modules.broken", "cannot be imported (ModuleNotFoundError: No module named 'nowhere_at_all')"),
        ("own_modules.py", "give the name of the Python module without .py"),
        ("own_modules/tilt", "give the dotted name of a Python module, such as my_package.my_module"),
    ):
        done = start("--plugin", name, "--output", "none")
        assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
    assert not (work / "none").exists()


def test_a_module_that_is_loaded_but_registers_nothing_is_no_plugin_and_one_that_was_imported_by_hand_is(work):
    forget()
    with pytest.raises(ValueError, match="need the plugin json.tool, which is not imported"):
        RunSettings(plugins=("json.tool",))
    import json.tool  # noqa: F401

    with pytest.raises(ValueError, match="need the plugin json.tool, which is not imported"):
        RunSettings(plugins=("json.tool",))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(work)
        (work / "own_families.py").write_text(
            "from peft_noah.tuner.backbones import BACKBONES, register_backbone\n"
            "register_backbone('vit_of_mine', BACKBONES['vit'])\n"
        )
        (work / "own_outer.py").write_text("import own_families\n")
        import own_outer  # noqa: F401
    assert RunSettings(plugins=("own_outer", "own_families")).plugins == ("own_outer", "own_families")
    BACKBONES.pop("vit_of_mine")


def test_the_working_folder_is_on_pythons_path_while_a_plugin_is_imported_and_no_longer(work):
    forget()
    (work / "beside.py").write_text("")
    (work / "looks.py").write_text("import beside\n")
    before = list(sys.path)
    import_plugins(["looks"])
    with pytest.raises(ValueError, match="is not there"):
        import_plugins(["nowhere"])
    assert sys.path == before
    sys.modules.pop("beside")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("beside")


def test_several_are_given_by_commas_or_by_the_option_again(work):
    assert read_plugin_names(["one, two.three", "four", "one"]) == ("one", "two.three", "four")
    assert read_plugin_names([]) is None
    with pytest.raises(ValueError, match="If you trust it, add --plugin far.away"):
        RunSettings(plugins=("far.away",))
    import_plugins(["json"])
    assert RunSettings(plugins=["json"]).plugins == ("json",)

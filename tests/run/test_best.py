"""Which adapter of a run is the one to use."""

import pytest

from peft_noah.results.report import MethodResult, RunReport
from peft_noah.run.best import find_best, keep_best


def make_result(method, validation, parameters=1_000):
    return MethodResult(method, 0, parameters, 50, validation, 0.8, 200, 2_000, 12.5)


def write_run(folder, validation, kept=("adapter", "adapter-lora", "adapter-inherited")):
    """A run folder with results of some validation accuracies, and adapter folders."""
    results = [make_result(method, validation=accuracy) for method, accuracy in validation.items()]
    RunReport(results).save(folder)
    for name in kept:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "adapter_model.safetensors").write_text(name)
    return folder


def test_a_single_module_that_is_ahead_of_noah_is_the_one_to_use(tmp_path):
    best = find_best(write_run(tmp_path, {"lora": 0.9, "noah retrained": 0.8}))
    assert (best.source, best.result.method, best.better) == ("adapter-lora", "lora", None)
    assert best.sentence().startswith(
        "use best/, a copy of adapter-lora/: lora was best on the 200 validation images (90.0 %"
    )


def test_inherited_weights_do_not_take_part_for_the_search_chose_them_on_the_same_images(tmp_path):
    assert find_best(write_run(tmp_path, {"noah inherited": 0.9, "noah retrained": 0.8})).source == "adapter"


def test_what_keeps_no_adapter_cannot_be_used_and_is_named_where_it_is_ahead(tmp_path):
    best = find_best(write_run(tmp_path, {"full": 0.95, "linear": 0.3, "lora": 0.9, "best single": 0.9}))
    assert best.source == "adapter-lora" and best.better.method == "full"
    assert best.sentence().endswith("; full had 95.0 %, but leaves no adapter")


def test_of_two_that_are_as_good_the_smaller_is_used(tmp_path):
    write_run(tmp_path, {"lora": 0.9, "noah retrained": 0.9})
    report = RunReport.load(tmp_path)
    small = [make_result("lora", validation=0.9, parameters=7), report.results[1]]
    RunReport(small).save(tmp_path)
    assert find_best(tmp_path).source == "adapter-lora"


@pytest.mark.parametrize("validation", [{"full": 0.9}, {"noah retrained": 0.9}])
def test_nothing_is_best_without_a_kept_adapter(validation, tmp_path):
    assert find_best(write_run(tmp_path, validation, kept=())) is None
    keep_best(tmp_path)
    assert not (tmp_path / "best").exists()


def test_the_copy_follows_the_results_and_is_not_written_twice(tmp_path):
    copied = tmp_path / "best" / "adapter_model.safetensors"
    keep_best(write_run(tmp_path, {"lora": 0.9, "noah retrained": 0.8}))
    stamp = copied.stat().st_mtime_ns
    keep_best(tmp_path)
    assert copied.read_text() == "adapter-lora" and copied.stat().st_mtime_ns == stamp
    keep_best(write_run(tmp_path, {"lora": 0.9, "noah retrained": 0.95}))
    assert copied.read_text() == "adapter" and not (tmp_path / "best.partial").exists()

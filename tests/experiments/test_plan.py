"""What a suite is asked to do, as data: its cells, their order, their cost, its file."""

from dataclasses import replace

import pytest
from cell_files import make_report

from peft_noah import Architecture
from peft_noah.experiments.plan import Plan, suite_settings
from peft_noah.experiments.suite import Suite
from peft_noah.experiments.tasks import Task
from peft_noah.jsonfile import dump_json
from peft_noah.run.settings import RunSettings

TASKS = (Task("a", "data/a", "one"), Task("b", "data/b", "two", other_num_classes=(3,), other_tests={"far": "x"}))
SIZES = {"train": 800, "validation": 200, "test": 2_000}


def plan(**changes):
    settings = {"tasks": TASKS, "methods": ("lora", "noah retrained"), "seeds": (0, 1), "run": RunSettings(epochs=100)}
    return Plan(**{**settings, **changes})


def cells(a_plan):
    return [(cell.task, cell.method, cell.seed) for cell in a_plan.cells()]


def test_every_task_comes_with_the_first_seed_before_any_with_the_second():
    assert cells(plan()) == [
        (task, method, seed) for seed in (0, 1) for task in "ab" for method in ("noah retrained", "lora")
    ]


def test_transfers_come_last_from_every_other_task_and_from_the_given_architectures():
    given = plan(methods=(), seeds=(0,), transfer=True, architectures={"hand": Architecture(lora=[1])})
    assert cells(given) == [
        ("a", "transfer hand", 0),
        ("a", "transfer b", 0),
        ("b", "transfer hand", 0),
        ("b", "transfer a", 0),
    ]


def test_a_cell_takes_its_data_from_the_task_and_the_rest_from_the_plan():
    settings = plan(run=RunSettings(strategy="race", epochs=7, budget=500)).settings(TASKS[1].cell("lora", 1))
    assert (settings.dataset, settings.task_name, settings.group, settings.seed) == ("data/b", "b", "two", 1)
    assert (settings.epochs, settings.budget, settings.other_tests) == (7, 500, {"far": "x"})


def test_a_space_that_was_asked_for_is_that_of_all_tasks_and_else_each_has_its_own():
    own = {"dims": {"lora": [2, 4], "ssf": [0, 1]}}
    few = replace(TASKS[0], search_space="few_shot")
    for asked, found in ((own, own), ("wide", "wide"), ("vtab", "few_shot")):
        one = plan(tasks=(few,), run=suite_settings((few,), search_space=asked))
        assert one.settings(few.cell("noah retrained", 0)).search_space == found


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        # images seen over 2 x 100 x 800: trained twice, on 800 and on 1,000 images, then 200 + 2,000 classified
        ("lora", (2 * 100 * 1_800 + 2_200) / 160_000),
        ("linear", (1 * 100 * 1_800 + 2_200) / 160_000),
        ("full", (3 * 100 * 1_800 + 2_200) / 160_000),
        ("noah inherited", (2 * 500 * 800 + 750 * 200 + 2_200) / 160_000),
        ("noah retrained", (2 * 500 * 800 + 750 * 200 + 2 * 100 * 1_800 + 2_200) / 160_000),
        ("noah continued", (2 * 500 * 800 + 750 * 200 + 2 * 100 * 1_800 + 2_200) / 160_000),
        ("random search", (2 * 500 * 800 + 750 * 200 + 2 * 100 * 1_800 + 2_200) / 160_000),
        # four, three and two designs for 6, 10 and 14 % of 100 epochs, each scored on 1,000 images; then 113 epochs of the winner
        ("race", ((0.82 + 9 / 200 + 1.13) * 2 * 100 * 1_000 + 2_200) / 160_000),
        ("best single", 3 * (2 * 100 * 1_800 + 2_200) / 160_000),
    ],
)
def test_cost_counts_images_in_fine_tunes(method, cost):
    assert plan().cost(TASKS[0].cell(method, 0), SIZES) == pytest.approx(cost)


def test_what_methods_share_is_left_out_on_request():
    paid = {"supernet", "search", "lora", "adapter"}
    assert plan().cost(TASKS[0].cell("noah retrained", 0), SIZES, paid) == pytest.approx(362_200 / 160_000)
    assert plan().cost(TASKS[0].cell("best single", 0), SIZES, paid) == pytest.approx(362_200 / 160_000)
    assert plan().cost(TASKS[0].cell("best single", 0), SIZES, paid | {"vpt"}) == 0


def test_the_first_transfer_from_a_task_pays_its_search_unless_that_is_done_or_a_method_does_it():
    search = (2 * 500 * 800 + 750 * 200) / 160_000
    for methods, paid, searches in (
        (("lora",), {}, (1, 1)),
        (("lora",), {"a/seed0": ["supernet", "search"]}, (1, 0)),
        (("lora", "random search"), {}, (750 * 200 / 160_000 / search,) * 2),  # the supernet is there
        (("noah inherited",), {}, (0, 0)),
    ):
        a_plan = plan(methods=methods, seeds=(0,), transfer=True, architectures={"hand": Architecture(lora=[1])})
        cells = list(a_plan.cells())
        costs = dict(zip(map(str, cells), a_plan.costs(cells, lambda task: SIZES, paid), strict=True))
        alone = costs["a, transfer hand, seed 0"]
        found = [costs[f"{one}, transfer {other}, seed 0"] - alone for one, other in ("ab", "ba")]
        assert found == pytest.approx([share * search for share in searches])


def test_a_plan_survives_its_file(tmp_path):
    before = plan(transfer=True, architectures={"hand": Architecture(lora=[1, 2])})
    before.save(tmp_path)
    assert Plan.load(tmp_path) == before


def test_a_plan_may_grow():
    grown = plan(seeds=(2,), methods=("linear",), tasks=TASKS[:1]).joined(plan())
    assert grown.seeds == (0, 1, 2) and grown.methods == ("lora", "noah retrained", "linear")
    assert grown.tasks == TASKS


def test_another_plan_is_refused():
    with pytest.raises(ValueError, match="started with other epochs"):
        plan(run=RunSettings(epochs=3)).joined(plan())
    with pytest.raises(ValueError, match="has other tasks by the names a"):
        plan(tasks=(replace(TASKS[0], dataset="elsewhere"),)).joined(plan())


def test_what_stands_twice_among_methods_and_seeds_is_taken_once():
    assert cells(plan(methods=("lora", "lora"), seeds=(1, 0, 1))) == cells(plan(methods=("lora",), seeds=(1, 0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "one or more tasks"),
        ({"seeds": ()}, "one or more seeds"),
        ({"methods": ()}, "one or more methods"),
        ({"methods": ("magic",)}, "method 'magic' is not known"),
        ({"seeds": (-1,)}, "seed is -1"),
        ({"seeds": (2**31,)}, "seed is 2147483648; give a whole number from 0 to 2,147,483,647"),
        *(
            ({"tasks": (Task(name, "a"),)}, "cannot be the name of a folder")
            for name in ("../a", "/a", "a/b", "..", "")
        ),
        ({"tasks": (Task("a\\b", "a"),)}, "cannot be the name of a folder"),
        ({"tasks": (TASKS[0], TASKS[0])}, "stand twice in the suite: a"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)


@pytest.mark.parametrize("text", ["{", "[]", '{"run": {}}', '{"run": 3, "methods": [], "seeds": [], "tasks": []}'])
def test_a_broken_plan_is_named(tmp_path, text):
    (tmp_path / "suite.json").write_text(text)
    with pytest.raises(ValueError, match=r"suite\.json"):
        Plan.load(tmp_path)


def test_the_time_left_is_the_cost_of_open_cells_at_the_rate_of_their_method_or_else_of_all(tmp_path):
    a_plan = plan(methods=("linear", "lora"), seeds=(0,))
    suite = Suite(tmp_path / "suite", a_plan)
    assert suite.progress().seconds_left is None
    report = make_report(TASKS[0].name, "linear")
    report.task["sizes"] = SIZES
    path = suite.files(TASKS[0].cell("linear", 0)).result_path("linear")
    path.parent.mkdir(parents=True)
    path.write_text(dump_json(report.to_dict()))
    done = a_plan.cost(TASKS[0].cell("linear", 0), SIZES)
    left = sum(a_plan.cost(cell, SIZES) for cell in suite.cells) - done
    assert suite.progress().seconds_left == pytest.approx(report.results[0].seconds / done * left)


@pytest.mark.parametrize(
    ("published", "options", "length"),
    [
        (None, {}, (10, 3.0)),
        (None, {"effort": 2.0}, (10, 2.0)),
        (None, {"generations": 3}, (10, None)),
        (None, {"epochs": 7}, (7, None)),
        ("vtab/cifar100", {}, (100, None)),
    ],
)
def test_a_suite_of_own_tasks_is_short_and_one_of_published_tasks_as_long_as_the_papers(published, options, length):
    settings = suite_settings([replace(TASKS[0], published=published)], **options)
    assert (settings.epochs, settings.effort) == length and settings.supernet_epochs is None

"""Inherited against retrained accuracy over a sample of architectures."""

import json

import pytest
from conftest import make_model
from tiny_runs import invoke, write_task

from peft_noah.experiments import ranking
from peft_noah.experiments.ranking import correlation, load_ranking, rank_architectures
from peft_noah.run.context import RunContext
from peft_noah.run.registry import transfer
from peft_noah.run.settings import RunSettings
from peft_noah.run.stages import validate_from_scratch
from peft_noah.run.supernet import load_supernet


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("ranking")
    make_model().save_pretrained(base / "vit")
    task = write_task(base / "task", validation=30)
    settings = RunSettings(
        model=str(base / "vit"), dataset=str(task), strategy="noah", epochs=2, supernet_epochs=2, budget=3_000
    )
    rank_architectures(RunContext(base / "run", settings), 4)
    return base / "run"


def test_both_scores_of_every_architecture_are_kept(run_folder):
    ranked = load_ranking(run_folder / "ranking.json")
    assert len({entry.architecture for entry in ranked}) == 4
    job = RunContext(run_folder)
    supernet = load_supernet(job)
    for entry in ranked:
        assert entry.parameters == supernet.count_parameters(entry.architecture) <= 3_000
        supernet.set_architecture(entry.architecture)
        assert entry.inherited == job.accuracy(supernet, job.splits.validation)


def test_retrained_means_trained_on_the_training_images_alone(run_folder):
    entry = load_ranking(run_folder / "ranking.json")[2]
    again = transfer("again", entry.architecture)
    assert validate_from_scratch(RunContext(run_folder), again) == entry.retrained


def test_an_interrupted_sample_goes_on_where_it_was(run_folder, monkeypatch):
    path = run_folder / "ranking.json"
    whole = path.read_bytes()
    data = json.loads(whole)
    path.write_text(json.dumps({"architectures": data["architectures"][:3]}))
    job, trained = RunContext(run_folder), []
    retrain = lambda *args: trained.append(args[1]) or validate_from_scratch(*args)  # noqa: E731
    monkeypatch.setattr(ranking, "validate_from_scratch", retrain)
    rank_architectures(job, 4)
    assert len(trained) == 1 and path.read_bytes() == whole


def test_the_command_prints_the_correlation(run_folder):
    ranked = load_ranking(run_folder / "ranking.json")
    result = invoke("rank", run_folder, "--architectures", "4")
    if len({entry.inherited for entry in ranked}) > 1 and len({entry.retrained for entry in ranked}) > 1:
        assert result.exit_code == 0 and str(correlation(ranked)) in result.output
    else:
        assert result.exit_code == 2 and "they rank nothing" in result.output


def test_too_few_architectures_are_refused(run_folder):
    result = invoke("rank", run_folder, "--architectures", "2")
    assert result.exit_code == 2 and "architectures is 2" in result.output


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"architectures": 3}', '{"architectures": [{"architecture": {"lora": [1]}}]}']
)
def test_a_broken_file_is_named_or_says_what_is_missing(tmp_path, text):
    (tmp_path / "ranking.json").write_text(text)
    with pytest.raises(ValueError, match="ranking.json|a ranked architecture"):
        load_ranking(tmp_path / "ranking.json")

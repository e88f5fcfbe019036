"""A trial opened for use: its run's cache is opened once, however often a command needs it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from shutil import copytree

import pytest

from featcache.cache.reader import Cache
from featcache.extras.export import export
from featcache.models import handoff
from featcache.sweeps import Chosen, Run
from featcache.tuning import finetune
from featcache_cli.app import main


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often each cache is opened from now on, by the name of its file."""
    counts: Counter[str] = Counter()
    original = Cache.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Cache], path: str | Path) -> Cache:
        counts[Path(path).name] += 1
        return original(cls, path)  # type: ignore[no-any-return]

    monkeypatch.setattr(Cache, "open", classmethod(counted))
    return counts


@pytest.mark.slow
def test_one_handoff_opens_its_cache_once(logreg: Chosen, tmp_path: Path, openings: Counter[str]) -> None:
    handoff(logreg, tmp_path / "model.keras")
    assert openings[Path(logreg.run.settings.cache).name] == 1


def test_the_command_opens_its_cache_once(
    logreg: Chosen, tmp_path: Path, openings: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = f"{logreg.run.path}@{logreg.trial.trial}"
    monkeypatch.setattr(sys, "argv", ["featcache", "handoff", trial, "-o", str(tmp_path / "model.keras"), "-q"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert openings[Path(logreg.run.settings.cache).name] == 1


@pytest.mark.slow
def test_one_finetuning_opens_its_cache_once(logreg: Chosen, tmp_path: Path, openings: Counter[str]) -> None:
    run = Run.open(copytree(logreg.run.path, tmp_path / "run"))  # fine-tuning writes into its run
    chosen = run[logreg.trial.trial]
    finetune(chosen, epochs=1, unfreeze="none", batch=64, controls=["frozen", "scratch"])
    assert openings[Path(logreg.run.settings.cache).name] == 1


@pytest.mark.slow
def test_one_export_of_a_trial_opens_its_cache_once(logreg: Chosen, tmp_path: Path, openings: Counter[str]) -> None:
    export(f"{logreg.run.path}@{logreg.trial.trial}", to="keras", out=tmp_path / "model.keras")
    assert openings[Path(logreg.run.settings.cache).name] == 1

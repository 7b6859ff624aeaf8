"""What a search remembers and what it tries next: one Optuna study an arm, all in one file of JSON lines.

Importing this needs Optuna. Optuna pickles only for its Redis journal; the file holds nothing but JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from ..config import Range
from ..errors import ArtifactError, ConfigError
from ..settings import Tree, first_difference
from .tuned import Outcome, Trial

_TERMS, _OUTCOME = "terms", "outcome"


class Journal:
    """The trials of all arms. One search a folder at a time: what another one has begun would count as killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # the search has lines of its own
        try:
            if path.exists():
                _mend(path)
            backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
            self.storage = JournalStorage(backend)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ArtifactError(
                f"{path}: damaged or no journal of a search ({error}): choose another folder, or delete it first"
            ) from error

    def arm(self, name: str, *, terms: Tree, ranges: Mapping[str, Range], seed: int, prune: bool) -> ArmJournal:
        """The trials of an arm, old ones first.

        Raises ConfigError where the old ones were made on other ``terms``: all that a value depends on.
        """
        study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
        )
        before = study.user_attrs.get(_TERMS)
        if before is None:
            study.set_user_attr(_TERMS, terms)
        elif difference := first_difference(before, json.loads(json.dumps(terms))):
            raise ConfigError(
                f"{self.path.parent}: holds a search with {difference}, whose values can't be compared: choose "
                "another folder with --out, or delete this one"
            )
        return ArmJournal(name, study, ranges, seed)


class ArmJournal:
    """The trials of one arm, and the one that is open."""

    def __init__(self, name: str, study: optuna.Study, ranges: Mapping[str, Range], seed: int) -> None:
        self.name, self.study, self.ranges, self.seed = name, study, ranges, seed
        self.open: optuna.Trial | None = None
        for killed in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(killed.number, state=TrialState.FAIL)  # neither counted nor learned from

    def trials(self) -> list[Trial]:
        """Those that came to an end, in order."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [
            Trial(
                arm=self.name,
                number=at,
                settings=self._settings(trial),
                outcome=Outcome.from_tree(trial.user_attrs[_OUTCOME]),
            )
            for at, trial in enumerate(ended, start=1)
        ]

    def begin(self, given: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The settings of the next trial: those ``given``, or drawn with the ended trials in mind.

        The draw depends on the seed and the ended trials alone, so a search that was cut off goes on as if it was not.
        """
        n = len(self.trials())
        stream = int(np.random.SeedSequence((self.seed, n)).generate_state(1)[0])
        self.study.sampler = TPESampler(seed=stream) if given is None else _Given(given)
        self.open = self.study.ask({name: _distribution(values) for name, values in self.ranges.items()})
        return self._settings(self.open)

    def is_hopeless(self, value: float, at: int) -> bool:
        """Whether the pruner gives the open trial up, whose validation number ``at`` had this value."""
        assert self.open is not None
        self.open.report(value, at)
        return self.open.should_prune()

    def end(self, outcome: Outcome) -> None:
        """Close the open trial."""
        assert self.open is not None
        self.open.set_user_attr(_OUTCOME, asdict(outcome))
        if outcome.value is None:
            self.study.tell(self.open, state=TrialState.PRUNED)  # which the sampler ranks below all others
        else:
            self.study.tell(self.open, outcome.value)
        self.open = None

    def _settings(self, trial: FrozenTrial | optuna.Trial) -> dict[str, Any]:
        """Values by name, in the order of the ranges."""
        return {
            name: json.loads(trial.params[name]) if values.choices is not None else trial.params[name]
            for name, values in self.ranges.items()
        }


class _Given(BaseSampler):
    """Draws what it was given."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = {name: json.dumps(value) for name, value in values.items()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each is drawn by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> str:
        """The choice as Optuna knows it."""
        return self.values[param_name]


def _distribution(values: Range) -> BaseDistribution:
    """Choices go by their JSON, as Optuna takes no lists."""
    if values.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in values.choices])
    low, high = values.low, values.high
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=values.log)
    return FloatDistribution(low, high, log=values.log)


def _mend(path: Path) -> None:
    """Take away what a kill left of the last line: the next one would be written behind it. The others are JSON."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    for line in whole.splitlines():
        json.loads(line)
    if content.startswith(b"{") and whole != content:
        path.write_bytes(whole)

"""What workers claim, how trials end, and what becomes of trials whose workers died."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo.claims import Claim, claim, reclaim
from hpo.storage import Lease
from hpo.study import StudyConfig, finished_trials, trial_config, write_study
from hpo.trials import OpenStudy, counted, finish_notes, open_study
from hpo.worker import run_finish, run_trial

MakeStudy = Callable[..., StudyConfig]
OpenOne = Callable[..., OpenStudy]
Train = Callable[..., Any]


@pytest.fixture
def open_one(make_study: MakeStudy) -> Iterator[OpenOne]:
    """Return a maker of open studies."""
    with ExitStack() as stack:

        def make(**changes: Any) -> OpenStudy:
            config = make_study(**changes)
            write_study(config)
            return stack.enter_context(open_study(config, create=True))

        yield make


def _work(opened: OpenStudy, train: Train, role: str = "worker-0") -> list[str]:
    """Do what a worker does, until there is nothing left; return what was done."""
    done = []
    with Lease(opened.config.output, role) as lease:
        while (now := claim(opened, lease.name)).kind != "done":
            done.append(f"{now.kind} {now.number}")
            if now.trial is not None:
                run_trial(now.trial, opened.config, train)
            elif now.kind == "finish":
                run_finish(opened, now, train)
    return done


def _take(opened: OpenStudy, worker: str) -> optuna.Trial:
    now = claim(opened, worker)
    assert now.trial is not None
    return now.trial


def test_trials_are_trained_until_there_are_enough(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one()
    assert _work(opened, quick_train) == [f"trial {number}" for number in range(6)]
    trials = opened.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert [len(trial.intermediate_values) for trial in trials] == [4] * 6
    assert trials[2].value == trials[2].intermediate_values[4]
    assert {"joules", "joules_method", "epochs", "seconds", "path", "worker", "metrics"} <= set(
        trials[2].user_attrs
    )
    assert trials[2].user_attrs["path"] == "trials/0002"


def test_several_workers_train_exactly_as_many_trials(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(trials=13)
    errors: list[BaseException] = []

    def work(slot: int) -> None:
        try:
            with open_study(opened.config) as mine:
                _work(mine, quick_train, f"worker-{slot}")
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(opened.trials()) == 13
    assert len({json.dumps(trial.params) for trial in opened.trials()}) == 13


def test_a_study_goes_on_when_its_budget_grows(open_one: OpenOne, quick_train: Train) -> None:
    _work(open_one(trials=2), quick_train)
    assert _work(open_one(trials=3), quick_train) == ["trial 2"]


def test_proposals_depend_on_seed_and_history_not_on_interruptions(
    open_one: OpenOne, quick_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def params(opened: OpenStudy) -> list[dict[str, Any]]:
        return [trial.params for trial in opened.trials()]

    sampler = {"kind": "tpe", "startup_trials": 3}
    whole = open_one(output=tmp_path_factory.mktemp("whole"), trials=8, sampler=sampler)
    _work(whole, quick_train)
    folder = tmp_path_factory.mktemp("parts")
    for trials in (2, 5, 8):
        parts = open_one(output=folder, trials=trials, sampler=sampler)
        _work(parts, quick_train)
    other = open_one(output=tmp_path_factory.mktemp("other"), trials=8, sampler=sampler, seed=1)
    _work(other, quick_train)
    assert params(parts) == params(whole)
    assert params(other) != params(whole)


def test_discarded_trials_end_as_pruned_and_are_told_apart(open_one: OpenOne, quick_train: Train) -> None:
    rule = {"kind": "median", "startup_trials": 2, "warmup_epochs": 2}
    opened = open_one(trials=10, discard=rule)
    _work(opened, quick_train)
    pruned = [trial for trial in opened.trials() if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.user_attrs["reason"] == "discarded"
        assert 2 <= trial.user_attrs["epochs"] < 4
        assert trial.user_attrs["joules"] == 2.0 * trial.user_attrs["epochs"]


def _raise(error: BaseException) -> Train:
    def train(config: Any, **options: Any) -> Any:
        raise error

    return train


def test_a_failing_trial_keeps_its_traceback_and_the_study_goes_on(open_one: OpenOne) -> None:
    opened = open_one(trials=2)
    _work(opened, _raise(KeyError("no such column")))
    assert [trial.state for trial in opened.trials()] == [TrialState.FAIL] * 2
    notes = opened.trials()[0].user_attrs
    assert notes["reason"] == "error"
    assert "no such column" in notes["traceback"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (FloatingPointError("nan"), "diverged"),
    ],
)
def test_what_settings_are_to_blame_for_counts_as_pruned_so_that_tpe_learns(
    open_one: OpenOne, error: Exception, reason: str
) -> None:
    opened = open_one(trials=1)
    _work(opened, _raise(error))
    (trial,) = opened.trials()
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, reason)


def test_a_loss_that_is_not_finite_stops_the_trial(open_one: OpenOne) -> None:
    from train.loop import Diverged

    def diverge(config: Any, *, on_epoch: Any, extend: bool) -> Any:
        on_epoch({"epoch": 1, "validation": {"loss": 3.0}})
        raise Diverged("after step 7: the validation loss is inf")

    opened = open_one(trials=1)
    _work(opened, diverge)
    (trial,) = opened.trials()
    assert (trial.state, trial.user_attrs["reason"], trial.value) == (TrialState.PRUNED, "diverged", 3.0)


def test_a_trial_of_a_dead_worker_is_taken_up_with_settings_folder_and_losses(
    open_one: OpenOne, quick_train: Train
) -> None:
    opened = open_one(trials=3)
    with Lease(opened.config.output, "worker-7") as lease:
        dying = _take(opened, lease.name)

        def die_in_the_third_epoch(record: dict[str, Any]) -> bool:
            dying.report(record["validation"]["loss"], record["epoch"])
            return record["epoch"] < 2

        folder = opened.config.output / dying.user_attrs["path"]
        quick_train(trial_config(opened.config, dying.params, folder), on_epoch=die_in_the_third_epoch)
    assert _work(opened, quick_train)[0] == "trial 1"
    trials = opened.trials()
    assert trials[0].state == TrialState.FAIL
    assert trials[0].user_attrs["reason"] == "worker died"
    assert trials[0].user_attrs["epochs"] == 2
    assert trials[1].state == TrialState.COMPLETE
    assert trials[1].user_attrs["retried_from"] == 0
    assert (trials[1].params, trials[1].user_attrs["path"]) == (trials[0].params, "trials/0000")
    assert sorted(trials[1].intermediate_values) == [1, 2, 3, 4]
    records = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in records] == [1, 2, 3, 4]  # none trained twice
    assert Counter(trial.state for trial in counted(trials)) == {TrialState.COMPLETE: 3}


def test_a_trial_that_kills_every_worker_is_given_up(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(trials=1, retries=2)
    for role in ("a", "b", "c"):
        with Lease(opened.config.output, role) as lease:
            _take(opened, lease.name)
    assert _work(opened, quick_train) == []
    assert [trial.state for trial in opened.trials()] == [TrialState.FAIL] * 3
    assert len(counted(opened.trials())) == 1


def test_a_worker_that_dies_between_asking_and_noting_blocks_nobody(
    open_one: OpenOne, quick_train: Train
) -> None:
    opened = open_one(trials=2)
    opened.study.ask()
    _work(opened, quick_train)
    assert Counter(trial.state for trial in counted(opened.trials())) == {TrialState.COMPLETE: 2}


def test_trials_of_other_hosts_are_left_alone_unless_asked(open_one: OpenOne) -> None:
    opened = open_one(trials=1)
    _take(opened, "another-host:1:worker-0")
    assert reclaim(opened) == []
    assert claim(opened, "me") == Claim("wait")
    assert reclaim(opened, everything=True) == [0]
    assert claim(opened, "me").number == 1


def test_a_worker_that_was_asked_to_leave_costs_its_trial_no_retry(
    open_one: OpenOne, quick_train: Train
) -> None:
    from train.loop import Interrupted

    opened = open_one(trials=1, retries=0)
    with pytest.raises(Interrupted):
        _work(opened, _raise(Interrupted("stopped by SIGTERM")))
    _work(opened, quick_train)
    assert [trial.state for trial in opened.trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_note_left_by_a_failing_rank_ends_the_trial(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(trials=2)
    with Lease(opened.config.output, "worker-7") as lease:
        trial = _take(opened, lease.name)
        folder = opened.config.output / trial.user_attrs["path"]
        folder.mkdir(parents=True)
        note = {"reason": "out of memory", "state": "PRUNED", "traceback": "on rank 1"}
        (folder / "failure.json").write_text(json.dumps(note))
    _work(opened, quick_train)
    assert [trial.state for trial in opened.trials()] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert opened.trials()[0].user_attrs["traceback"] == "on rank 1"


def test_a_trial_that_another_took_meanwhile_is_left_to_it(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(trials=1)
    with Lease(opened.config.output, "slow") as lease:
        trial = _take(opened, lease.name)
        reclaim(opened, everything=True)
        assert run_trial(trial, opened.config, quick_train) is None
    assert [one.state for one in opened.trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_the_best_trials_go_on_from_their_checkpoints(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(finish={"best": 2, "epochs": 7})
    done = _work(opened, quick_train)
    ranked = sorted(opened.trials(), key=lambda trial: trial.value or 0.0)
    assert done[6:] == [f"finish {trial.number}" for trial in ranked[:2]]
    rows = finished_trials(opened.config.output)
    assert [row["trial"] for row in rows] == [trial.number for trial in ranked]
    assert [(row["finished"], row["epochs"], row["joules"]) for row in rows[:3]] == [
        (True, 7, 14.0),
        (True, 7, 14.0),
        (False, 4, 8.0),
    ]
    assert rows[0]["value"] < (ranked[0].value or 0.0)
    assert {"path", "params", "energy_mae_mev_per_atom", "forces_mae_ev_per_angstrom"} <= set(rows[0])
    assert _work(opened, quick_train) == []


def test_a_continuation_whose_worker_died_is_taken_up(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(trials=1, finish={"best": 1, "epochs": 6})
    with Lease(opened.config.output, "worker-7") as lease:
        run_trial(_take(opened, lease.name), opened.config, quick_train)
        assert claim(opened, lease.name).kind == "finish"
        assert claim(opened, "me").kind == "wait"
    assert _work(opened, quick_train) == ["finish 0"]
    assert finish_notes(opened)[0]["epochs"] == 6


def test_a_continuation_that_fails_leaves_the_trial_as_it_was(open_one: OpenOne, quick_train: Train) -> None:
    opened = open_one(trials=1, finish={"best": 1, "epochs": 6})
    with Lease(opened.config.output, "worker-0") as lease:
        run_trial(_take(opened, lease.name), opened.config, quick_train)
    assert _work(opened, _raise(ValueError("broken"))) == ["finish 0"]
    assert "broken" in finish_notes(opened)[0]["traceback"]
    assert [row["finished"] for row in finished_trials(opened.config.output)] == [False]


def test_databases_are_shared_as_journals_are(open_one: OpenOne, quick_train: Train, tmp_path: Any) -> None:
    opened = open_one(storage=f"sqlite:///{tmp_path}/study.db", trials=2, finish={"best": 1, "epochs": 5})
    with Lease(opened.config.output, "worker-7") as lease:
        _take(opened, lease.name)
    done = _work(opened, quick_train)
    assert done[:2] == ["trial 1", "trial 2"]
    assert done[2].startswith("finish")
    assert Counter(trial.state for trial in counted(opened.trials())) == {TrialState.COMPLETE: 2}

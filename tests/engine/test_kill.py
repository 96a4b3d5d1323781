"""Kill -9, resume, compare: figures by ``python tests/engine/kill_harness.py --kills 24``."""

from __future__ import annotations

import kill_harness
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kills"), [("classify", 24), ("segment", 6), ("detect", 6)])
def test_killed_again_and_again_the_runs_end_the_same(task, kills, tmp_path):
    outcome = kill_harness.harness(kills, seed=0, folder=tmp_path, task=task, most=10 * kills)
    print(outcome.report())
    assert outcome.kills >= kills
    assert outcome.in_a_write >= 1
    assert outcome.equal >= 1
    assert outcome.different == []
    assert outcome.lost == []


@pytest.mark.slow
def test_a_save_in_place_fails_the_harness(tmp_path):
    """The negative control: a harness that this passes would see nothing."""
    outcome = kill_harness.harness(24, seed=0, folder=tmp_path, in_place=True, most=240)
    print(outcome.report())
    assert outcome.lost or outcome.different

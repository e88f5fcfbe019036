"""What `featcache finetune` prints of a training."""

import numpy as np
import pytest

from featcache.sweeps.metrics import Score
from featcache.tuning.train import Epoch
from featcache.tuning.tuned import Tuned
from featcache_cli.finetune import text


def tuned(*history):
    start = Epoch(0, float("nan"), 0.5, Score(0.8, 0.7, 0.9), 0.1)
    return Tuned(None, None, (start, *history), start, None, 0, 0.1, chosen=None, val_logits=np.zeros((0, 2)))


@pytest.mark.parametrize(("epoch", "mixture", "share"), [(1, 0.1, "10%"), (4, 0.3, "30%")])
def test_the_note_on_mixtures_is_about_one_of_the_table(epoch, mixture, share):
    shown = text(tuned(Epoch(epoch, 0.4, 0.5, Score(0.8, 0.7, 0.9), 0.1, mixture=mixture)))
    assert f"{epoch} x {mixture} are weights {share} of the way from the start to epoch {epoch}, judged" in shown
    assert f"\n{epoch} x {mixture} " in shown.partition("Epoch 0")[0]


def test_small_losses_are_no_zeros():
    val = Score(0.8, 0.7, 0.9)
    lines = text(tuned(Epoch(1, 1.2e-5, 3e-4, val, 0.1), Epoch(2, 0.0, 0.25, val, 0.1))).splitlines()
    assert [line.split()[1:3] for line in lines[3:5]] == [["1.2e-05", "3.0e-04"], ["0.0000", "0.2500"]]

from __future__ import annotations

import csv
import itertools
import os
import signal

import pytest
import torch
from torch import nn

from editbook.errors import EditbookError
from editbook.training.loop import Plan, Recipe, train
from editbook.training.stream import EditStream, SceneStream


def recipe(before_step=lambda step: None, **options):
    """Learn to repeat small pictures through a bottleneck; draws from two streams and from torch's generator."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 96), nn.GELU(), nn.Linear(96, 768))
    scenes, edits = SceneStream(1, 8, size=16, pool=32), EditStream(2, 8, size=16, pool=32)
    step = 0

    def loss():
        nonlocal step
        before_step(step)
        step += 1
        scenes.advance()
        edits.advance()
        x = torch.cat([scenes.pictures(scenes.choose()), edits.pictures(edits.choose())[:, 1]])
        noisy = x + 0.05 * torch.randn_like(x)
        return (net(noisy).float() - x.flatten(1)).square().mean()

    return Recipe("net", {"net": net}, scenes, loss, more_streams=(edits,), **options)


def weights(made):
    return torch.cat([p.flatten() for p in made.networks["net"].parameters()])


def rows(folder):
    """The log without the column of seconds."""
    with open(folder / "net" / "loss.csv", newline="") as file:
        return [(row[0], row[2], row[3]) for row in csv.reader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: (weights, log, record, folder)."""
    folder, made = tmp_path_factory.mktemp("whole"), recipe()
    record = train(made, Plan(folder, samples=8 * 60))
    return weights(made).clone(), rows(folder), record, folder


def test_the_loss_goes_down(whole):
    _, log, record, _ = whole
    assert record["samples"] == 8 * 60
    assert float(log[-1][1]) < 0.9 * float(log[0][1])


def test_the_loss_curve_is_drawn(whole):
    assert (whole[3] / "net" / "loss.png").stat().st_size > 1000


def test_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    rates = []
    made = recipe(decay_from=0.5)
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(made, Plan(tmp_path, samples=8 * 240))
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 1e-3 / 100
    falling = rates[121:]
    assert all(late < early for early, late in itertools.pairwise(falling))


def test_sigterm_saves_and_the_same_command_gives_the_same_weights(whole, tmp_path):
    plan = Plan(tmp_path, samples=8 * 60)

    def terminate(step):
        if step == 33:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="goes on from there"):
        train(recipe(terminate), plan)
    assert signal.getsignal(signal.SIGTERM) is handler
    torch.manual_seed(99)  # a new process would not have the old one's generator
    made = recipe()
    record = train(made, plan)
    assert record["samples"] == 8 * 60
    assert torch.equal(weights(made), whole[0])
    assert rows(tmp_path) == whole[1]


def test_a_kill_loses_only_what_came_after_the_last_checkpoint(whole, tmp_path):
    checkpoint = tmp_path / "net" / "checkpoint.pt"
    copy = []

    def die(step):
        if step == 30:
            copy.append(checkpoint.read_bytes())
        if step == 47:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(die), Plan(tmp_path, samples=8 * 60, save_every=0.0))
    checkpoint.write_bytes(copy[0])  # as if the last save had been at step 30; the log is already at step 40
    with open(tmp_path / "net" / "loss.csv", "a") as log:
        log.write("40")  # torn by the kill
    made = recipe()
    train(made, Plan(tmp_path, samples=8 * 60))
    assert torch.equal(weights(made), whole[0])
    assert rows(tmp_path) == whole[1]


def test_a_finished_run_is_not_trained_again(whole):
    made = recipe(before_step=lambda step: pytest.fail("trained again"))
    train(made, Plan(whole[3], samples=8 * 60))
    assert torch.equal(weights(made), whole[0])


def test_the_average_is_what_is_shown_and_left(tmp_path):
    shown = []
    made = recipe(show=lambda folder: shown.append(weights(made).clone()))
    train(made, Plan(tmp_path, samples=8 * 20))
    state = torch.load(tmp_path / "net" / "checkpoint.pt", weights_only=True)
    average = torch.cat([mean.flatten() for mean in state["average"]])
    last = torch.cat([value.flatten() for value in state["modules"].values()])
    assert torch.equal(shown[-1], average)
    assert torch.equal(weights(made), average)
    assert not torch.equal(average, last)


def test_a_loss_that_is_not_finite_says_what_to_do(tmp_path):
    made = recipe()
    made.loss = lambda: weights(made).sum() * float("nan")
    with pytest.raises(EditbookError, match="learning_rate"):
        train(made, Plan(tmp_path, samples=80))


def test_a_damaged_checkpoint_and_a_device_that_is_not_there_raise(tmp_path):
    train(recipe(), Plan(tmp_path, samples=8 * 5))
    checkpoint = tmp_path / "net" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(EditbookError, match="is damaged"):
        train(recipe(), Plan(tmp_path, samples=8 * 10))
    with pytest.raises(EditbookError, match="'tpu9' cannot be used"):
        train(recipe(), Plan(tmp_path, samples=8, device="tpu9"))

"""Threads that share a model: each sees the mode that it asked for, and the module ends in its own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import filled, small
from torch import Tensor, nn

from scoresde import VPSDE, ConfigError, ScoreModel, sample
from scoresde.models import modes
from scoresde.models.guidance.clamp import Clamp
from scoresde.models.guidance.combine import CombinedModel, product
from scoresde.models.mapped import MappedModel, map_prediction
from scoresde.models.prediction import in_mode
from scoresde.nn import MLP

LONG = 30.0  # seconds, after which a barrier breaks and the test fails


class Told(nn.Module):
    """A network that notes its modes, and stops where a test tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.inner = nn.Identity()
        self.seen: list[tuple[bool, bool]] = []
        self.stop: Callable[[], None] = lambda: None

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        self.stop()
        self.seen.append((self.training, self.inner.training))
        return self.gain * x


def run(*works: Callable[[], None]) -> list[BaseException]:
    """Run each in a thread of its own and return what they raised."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def test_a_thread_that_ends_leaves_the_mode_to_those_that_go_on() -> None:
    net = Told()
    model = ScoreModel(net, VPSDE())
    model.train()
    net.inner.eval()
    inside, left = threading.Event(), threading.Event()
    calls: list[int] = []

    def stop() -> None:
        # The second thread waits in its first call until the first thread has left.
        if threading.current_thread().name == "second" and not calls:
            calls.append(1)
            inside.set()
            assert left.wait(LONG)

    net.stop = stop

    def first() -> None:
        with in_mode(model, training=False):
            second = threading.Thread(target=sample, args=(model, (2, 3)), kwargs={"steps": 3, "seed": 0})
            second.name = "second"
            second.start()
            assert inside.wait(LONG)
        left.set()
        second.join(LONG)

    assert run(first) == []
    assert net.seen == [(False, False)] * len(net.seen)
    assert len(net.seen) >= 3
    # Its own modes, part by part, once nobody uses it.
    assert (model.training, net.training, net.inner.training) == (True, True, False)
    assert modes._users == {}


def test_dropout_never_wakes_while_threads_sample() -> None:
    model = ScoreModel(nn.Sequential(), VPSDE())
    net = MLP(3, width=8, depth=1)

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.drop = filled(net), nn.Dropout(0.5)

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.drop(self.net(x, c_noise))

    model = ScoreModel(Dropped(), VPSDE())
    model.train()
    wanted = sample(model, (4, 3), steps=4, seed=3)
    wrong: list[float] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        for _ in range(8):
            barrier.wait(LONG)
            got = sample(model, (4, 3), steps=4, seed=3)
            wrong.append(float((got - wanted).abs().max()))

    assert run(work, work, work, work) == []
    assert len(wrong) == 32
    assert max(wrong) < 1e-5 * float(wanted.abs().max())
    assert model.training
    assert model.net.drop.training


def test_the_other_mode_is_refused_while_another_thread_has_one() -> None:
    net = Told()
    model = ScoreModel(net, VPSDE()).eval()
    held, done = threading.Event(), threading.Event()

    def hold(training: bool) -> None:
        with in_mode(net, training=training):
            held.set()
            assert done.wait(LONG)

    for training, message in ((True, "in training mode, and this one needs evaluation"), (False, "in evaluation mode")):
        held.clear()
        done.clear()
        thread = threading.Thread(target=hold, args=(training,))
        thread.start()
        assert held.wait(LONG)
        try:
            with pytest.raises(ConfigError, match=rf"another thread uses Told {message}.*copy\.deepcopy\(model\)"):
                in_mode(model, training=not training).__enter__()
            assert net.training is training
            if training:
                with pytest.raises(ConfigError, match="another thread uses Told in training mode"):
                    sample(model, (2, 3), steps=2)
            # Evaluation is shared; a second training would write the weights of the first.
            if training:
                with pytest.raises(ConfigError, match="needs training mode, which is for one at a time"):
                    in_mode(model, training=True).__enter__()
            else:
                with in_mode(model, training=False):
                    pass
            assert net.training is training
        finally:
            done.set()
            thread.join(LONG)
        assert not net.training
    assert net.seen == []
    assert modes._users == {}


def test_a_thread_may_judge_what_it_trains_and_nobody_else_joins_then() -> None:
    net = Told().eval()
    refused: list[str] = []

    def join() -> None:
        try:
            with in_mode(net, training=False):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with in_mode(net, training=True):
        assert net.training
        with in_mode(net, training=False), in_mode(net, training=False):
            assert not net.training
            # Its mode is the wanted one, but for a moment only.
            assert run(join) == []
            with in_mode(net, training=True):
                assert net.training
            assert not net.training, "what was left is the innermost"
        assert net.training
    assert not net.training
    assert len(refused) == 1
    with pytest.raises(ZeroDivisionError), in_mode(net, training=True):
        raise ZeroDivisionError
    assert not net.training
    assert modes._users == {}


def test_a_mode_that_is_right_is_not_touched() -> None:
    written: list[str] = []

    class Watched(nn.Module):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "training":
                written.append(name)
            super().__setattr__(name, value)

    net = Watched().eval()
    written.clear()
    with in_mode(net, training=False), in_mode(net, training=False):
        pass
    assert written == []
    with in_mode(net, training=True):
        pass
    assert written == ["training"] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_free_of_its_parents_threads() -> None:
    net = Told().eval()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with in_mode(net, training=True):
            held.set()
            assert done.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LONG)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with in_mode(net, training=False):
                code = 2 * net.training
        finally:
            os._exit(code + net.training)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join(LONG)
    assert os.waitstatus_to_exitcode(status) == 0


def test_loaded_models_are_in_evaluation_mode(tmp_path: Path) -> None:
    small(0).save(tmp_path / "one")
    one = ScoreModel.load(tmp_path / "one")
    own = MLP(3, width=8, depth=1).train()
    given = ScoreModel.load(tmp_path / "one", net=own)
    map_prediction(one, Clamp()).save(tmp_path / "mapped")
    product([one, small(1)]).save(tmp_path / "combined")
    loaded = (one, given, MappedModel.load(tmp_path / "mapped"), CombinedModel.load(tmp_path / "combined"))
    for model in loaded:
        assert not any(part.training for part in model.modules())
    assert not own.training

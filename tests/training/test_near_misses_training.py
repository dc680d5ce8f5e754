"""Words of other libraries, and the word that the error gives back."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from scoresde import VPSDE, DTypeError, ScoreModel, fit
from scoresde.errors import explain_keywords
from scoresde.nn import MLP
from scoresde.training import Trainer


@explain_keywords(eps="epsilon", passes="steps= with steps = 2 passes")
def add(a: int, /, steps: int, *, epsilon: int = 0) -> int:
    """Return the sum."""
    return a + steps + epsilon


def test_right_words_pass_and_the_function_stays_what_it_was() -> None:
    assert add(1, 2, epsilon=3) == add(1, steps=2, epsilon=3) == 6
    assert list(inspect.signature(add).parameters) == ["a", "steps", "epsilon"]
    assert (add.__name__, add.__doc__) == ("add", "Return the sum.")
    assert pickle.loads(pickle.dumps(add)) is copy.deepcopy(add) is add
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'steps'"):
        add(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"eps": 1}, r"add\(\) takes no eps=, use epsilon="),
        ({"passes": 1}, r"add\(\) takes no passes=, use steps= with steps = 2 passes"),
        ({"Num_Steps": 1}, r"add\(\) takes no Num_Steps=, use steps="),
        ({"epsilom": 1}, r"takes no epsilom=, use epsilon="),
        ({"zzz": 1}, r"takes no zzz=, use one of steps, epsilon"),
        ({"a": 1}, r"takes no a=, use one of steps, epsilon"),
        ({"eps": 1, "n_steps": 2, "steps": 3}, r"takes no eps=, use epsilon=; no n_steps=, use steps="),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(words: dict[str, int], message: str) -> None:
    with pytest.raises(DTypeError, match=message + "$"):
        add(1, **words)


def test_a_class_is_named_by_its_own_name() -> None:
    class Thing:
        @explain_keywords(lr="rate")
        def __init__(self, rate: float) -> None:
            self.rate = rate

    assert Thing(rate=2.0).rate == 2.0
    with pytest.raises(DTypeError, match=r"Thing\(\) takes no lr=, use rate=; no self_=, use one of rate"):
        Thing(lr=1.0, self_=1)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("lr", "learning_rate="),
        ("epochs", "steps= with steps = epochs \\* len\\(data\\) / batch_size"),
        ("num_steps", "steps="),
        ("n_steps", "steps="),
        ("num_train_steps", "steps="),
        ("batchsize", "batch_size="),
        ("bs", "batch_size="),
        ("ema", "ema_decay="),
        ("warmup_steps", "warmup="),
        ("grad_clip", "clip_norm="),
        ("labels", 'cond={"label": labels}'),
        ("heldout", "held_out="),
        ("save_dir", "folder="),
    ],
)
def test_fit_names_the_right_word(word: str, right: str) -> None:
    model = ScoreModel(MLP(2, width=8, depth=1), VPSDE())
    with pytest.raises(DTypeError, match=f"{word}=, use {right}$"):
        fit(model, torch.zeros(4, 2), **{word: 1})
    with pytest.raises(DTypeError, match=f"fit.. takes no {word}="):
        fit(model, torch.zeros(4, 2), steps=1, **{word: 1})


@pytest.mark.parametrize(("word", "right"), [("lr", "learning_rate="), ("ema", "ema_decay="), ("time", "times=")])
def test_a_trainer_names_the_right_word(word: str, right: str) -> None:
    with pytest.raises(DTypeError, match=rf"Trainer\(\) takes no {word}=, use {right}$"):
        Trainer(ScoreModel(MLP(2, width=8, depth=1), VPSDE()), **{word: 1})

"""Data sets, loaders and iterables: the order is (seed, epoch, index)'s, whoever reads and however many."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import DATA, same, tiny, weights
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scoresde import VPSDE, ConfigError, DataError, DTypeError, Moments, ScoreModel, ShapeError, fit, noise
from scoresde.nn import MLP
from scoresde.training.opening import open_source

N = 50
LABELS = torch.arange(N) % 3
OPTIONS: dict[str, Any] = {"steps": 9, "batch_size": 16, "learning_rate": 1e-2, "progress": False, "save_every": 4}


def conditional() -> ScoreModel:
    return ScoreModel(MLP(2, width=16, depth=1, classes=3), VPSDE())


class Points(Dataset[Any]):
    """Points with labels; ``shaken`` ones draw from each of the global generators."""

    def __init__(self, form: str = "pair", shaken: bool = False) -> None:
        self.form, self.shaken = form, shaken

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        x = DATA[index]
        if self.shaken:
            drawn = [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002
            x = x + 0.1 * torch.tensor([drawn[0] + drawn[1], drawn[2]])
        label = int(LABELS[index])
        return {"pair": (x, label), "dict": {"x": x, "label": label}, "x": x, "list": x.tolist()}[self.form]


class Plain:
    """The items of a data set that is no torch ``Dataset``, as those of Hugging Face are."""

    def __init__(self) -> None:
        self.inner = Points("dict")

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"x": DATA[index].numpy(), "label": np.int64(LABELS[index])}


class Lines(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(Points("pair")[i] for i in range(N))


def trained(data: Any, model: ScoreModel | None = None, **options: Any) -> list[Tensor]:
    model = model or conditional()
    fit(model, data, **{**OPTIONS, **options})
    return weights(model)


@pytest.mark.parametrize("data", [Points("pair"), Points("dict"), Plain(), TensorDataset(DATA[:N], LABELS)])
def test_items_train_as_the_array_of_them_does(data: Any) -> None:
    """A data set whose items are the rows of an array gives the array's batches, and so the same weights to the bit."""
    assert same(trained(data), trained(DATA[:N], cond={"label": LABELS}))


def test_a_network_without_conditions_leaves_labels_out() -> None:
    assert same(trained(Points("pair"), tiny()), trained(DATA[:N], tiny()))
    assert same(trained(Points("list"), tiny()), trained(DATA[:N], tiny()))


def test_neither_order_nor_draws_depend_on_the_workers() -> None:
    """Also where an item draws from all three global generators; another seed draws otherwise."""
    here = trained(Points(shaken=True))
    assert same(here, trained(Points(shaken=True), workers=2))
    assert not same(here, trained(Points(shaken=True), seed=1))
    source = open_source(Points(shaken=True), None, conditional().net, batch_size=16, seed=0, unpack=None, workers=0)
    first, again = source.read(0)[0], source.read(0)[0]
    assert torch.equal(first, again)
    epochs = torch.cat([source.read(k)[0] for k in range(7)])[: 2 * N]
    assert not torch.equal(epochs[:N].sort(0).values, epochs[N:].sort(0).values)  # an item is drawn anew each epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_of_items_goes_on_to_the_same_bits(tmp_path: Path, workers: int) -> None:
    whole = conditional()
    fit(whole, Points(shaken=True), folder=tmp_path / "whole", workers=workers, **OPTIONS)
    resumed = stop_and_resume(tmp_path / "cut", Points(shaken=True), workers=workers)
    assert same(weights(whole), weights(resumed))


def stop_and_resume(folder: Path, data: Any, **options: Any) -> ScoreModel:
    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record["step"] == 6:
            raise Stop

    given = {**OPTIONS, **options, "folder": folder}
    with pytest.raises(Stop):
        fit(conditional(), data, log_every=1, on_log=stop, **given)
    model = conditional()
    fit(model, data, resume=True, **given)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Points(), batch_size=16, shuffle=True),
        lambda: DataLoader(Points(shaken=True), batch_size=16, shuffle=True),
        lambda: Lines(),
        lambda: [(DATA[i : i + 10], LABELS[i : i + 10]) for i in range(0, N, 10)].__iter__ and Batched(),
    ],
    ids=["shuffled", "shaken", "lines", "batches"],
)
def test_loaders_and_iterables_go_on_to_the_same_bits(tmp_path: Path, make: Any) -> None:
    """Also over the end of an epoch: nine steps of batches of which an epoch has four or five."""
    own = {} if isinstance(make(), Lines) else {"batch_size": None}
    whole = conditional()
    fit(whole, make(), folder=tmp_path / "whole", **{**OPTIONS, **own})
    assert same(weights(whole), weights(stop_and_resume(tmp_path / "cut", make(), **own)))
    other = conditional()
    fit(other, make(), seed=1, **{**OPTIONS, **own})
    assert not same(weights(whole), weights(other))


def test_a_shuffled_loader_has_another_order_in_every_epoch() -> None:
    """Also one whose data set wants to be told the epoch."""
    loader = DataLoader(Points("x"), batch_size=10, shuffle=True)
    source = open_source(loader, None, tiny().net, batch_size=None, seed=0, unpack=None, workers=0)
    epochs = torch.stack([source.read(k)[0] for k in range(10)]).reshape(2, N, 2)
    assert torch.equal(epochs[0].sort(0).values, epochs[1].sort(0).values)
    assert not torch.equal(epochs[0], epochs[1])

    class Told(Lines):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    fit(conditional(), Told(), **OPTIONS)
    assert sorted(set(Told.epochs)) == [0, 1, 2]


class Batched:
    """An iterable of batches that begins anew."""

    def __iter__(self) -> Iterator[Any]:
        return iter((DATA[i : i + 10], {"label": LABELS[i : i + 10]}) for i in range(0, N, 10))


def test_moments_are_those_of_the_data_whatever_reads_them() -> None:
    wanted = Moments.of(DATA[:N])
    for data in (Points("x"), Lines(), DataLoader(Points("x"), batch_size=7)):
        model = tiny()
        own = {"batch_size": None} if isinstance(data, DataLoader) else {}
        fit(model, data, **{**OPTIONS, "steps": 1, **own})
        torch.testing.assert_close(model.moments.mean, wanted.mean)
        torch.testing.assert_close(model.moments.covariance, wanted.covariance)
    given = Moments.exact(torch.zeros(2), torch.eye(2))
    model = tiny()
    fit(model, iter([DATA[:10]] * 3), moments=given, **{**OPTIONS, "steps": 3, "batch_size": None})
    assert model.moments is given


def test_held_out_data_may_be_a_data_set() -> None:
    logs = [
        fit(conditional(), DATA[:N], cond={"label": LABELS}, held_out=held, held_out_cond=cond, **OPTIONS).log
        for held, cond in ((Points(), None), (DATA[:N], {"label": LABELS}))
    ]
    values = [[record["held_out_loss"] for record in log if "held_out_loss" in record] for log in logs]
    assert values[0] == values[1]
    assert len(values[0]) == 3


def test_an_iterator_that_ends_says_so() -> None:
    given = {**OPTIONS, "batch_size": None, "moments": Moments.of(DATA)}
    with pytest.raises(DataError, match="the data ended before step 2: an iterator is read once"):
        fit(tiny(), iter([DATA[:10]] * 2), **given)
    with pytest.raises(ConfigError, match="its moments cannot be measured; give moments="):
        fit(tiny(), iter([DATA[:10]] * 2), **{**given, "moments": None})
    with pytest.raises(ShapeError, match="data is empty"):
        fit(tiny(), DataLoader(TensorDataset(DATA[:0]), batch_size=2), **{**given, "moments": None})


class Odd(Dataset[Any]):
    """Items of one kind of trouble."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    ("items", "kind", "message"),
    [
        ((DATA[0], DATA[0][:1]), ShapeError, r"one shape, got \(2,\) at 0 and \(1,\) at 1; bring them to one size"),
        (({"x": DATA[0], "y": 1},) * 2, ConfigError, "has the entries 'x', 'y', and the network takes none"),
        (((DATA[0], 1, 2),) * 2, ConfigError, "has 3 parts, .*unpack="),
        (("a", "b"), DTypeError, "x of the data must be numbers or a picture, got 'a' of type str"),
        ((), ShapeError, "data is empty"),
        (((DATA[0], {"label": 1}), (DATA[0], {})), ConfigError, r"conditions \[\], item 0 \['label'\]"),
    ],
)
def test_items_that_cannot_serve_are_named(items: Any, kind: type[Exception], message: str) -> None:
    model = tiny()
    with pytest.raises(kind, match=message):
        fit(model, Odd(*items), **OPTIONS)
    assert model.moments is None


def test_options_that_do_not_go_with_the_data_are_refused() -> None:
    loader = DataLoader(Points(), batch_size=5)
    with pytest.raises(ConfigError, match="a loader has its own, leave them out"):
        fit(conditional(), loader, **OPTIONS)
    with pytest.raises(ConfigError, match="cond= is for arrays"):
        fit(conditional(), Points(), cond={"label": LABELS}, **OPTIONS)
    with pytest.raises(ConfigError, match="workers= cannot part an IterableDataset"):
        fit(conditional(), Lines(), workers=2, **OPTIONS)
    drawn = DataLoader(Points(), batch_size=5, shuffle=True, generator=noise.stream(0, "own"))
    with pytest.raises(ConfigError, match="the DataLoader has a generator of its own"):
        fit(conditional(), drawn, **{**OPTIONS, "batch_size": None})


def test_unpack_says_what_an_item_holds() -> None:
    items = Odd(*({"a": x, "b": int(k)} for x, k in zip(DATA[:N], LABELS, strict=False)))
    got = trained(items, unpack=lambda item: (item["a"], {"label": item["b"]}))
    assert same(got, trained(Points()))


def test_a_picture_is_its_bytes() -> None:
    from PIL import Image

    pixels = (np.arange(4 * 5 * 3) % 251).astype(np.uint8).reshape(4, 5, 3)
    source = open_source(
        Odd(*[Image.fromarray(pixels)] * 2), None, tiny().net, batch_size=2, seed=0, unpack=None, workers=0
    )
    x, cond = source.read(0)
    assert cond is None
    assert torch.equal(x[0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_data_sets_of_hugging_face_train_as_the_arrays_do() -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"x": DATA[:N].tolist(), "label": LABELS.tolist()})
    expected = trained(DATA[:N], cond={"label": LABELS})
    for form in (None, "torch", "numpy"):
        assert same(trained(rows.with_format(form)), expected), form
    # Streamed: in the order of the file, or shuffled by a buffer that is told the epoch.
    streamed = rows.to_iterable_dataset()
    assert same(trained(streamed), trained(Lines()))
    assert not same(trained(streamed.shuffle(seed=1, buffer_size=20)), trained(Lines()))


def test_the_second_of_a_pair_is_the_label_where_there_is_one() -> None:
    def several(**options: Any) -> ScoreModel:
        return ScoreModel(MLP(2, width=16, depth=1, **options), VPSDE())

    for options, name in (
        ({"classes": {"label": 3}, "context_features": {"a": 2, "z": 1}}, "label"),
        ({"context_features": {"weather": 1}}, "weather"),
    ):
        seen = open_source(Points(), None, several(**options).net, batch_size=4, seed=0, unpack=None, workers=0)
        assert list(seen.read(0)[1]) == [name]
    two = several(context_features={"a": 2, "z": 1})
    with pytest.raises(ConfigError, match=r"has 2 parts, and what the network is told .* is not known; pass unpack="):
        fit(two, Points(), **OPTIONS)


def test_a_tensor_data_set_with_a_function_is_read_item_by_item() -> None:
    scaled = DATA[:N] * torch.arange(1, N + 1)[:, None]
    source = open_source(
        TensorDataset(scaled), None, tiny().net, batch_size=N, seed=0, unpack=lambda i: i[0] / i[0].norm(), workers=0
    )
    torch.testing.assert_close(source.read(0)[0].norm(dim=1), torch.ones(N))
    assert same(trained(TensorDataset(DATA[:N], LABELS), workers=1), trained(DATA[:N], cond={"label": LABELS}))


@pytest.mark.parametrize(("kind", "scale"), [("f4", 1.0), ("u2", 1000.0), ("i4", 70000.0)])
def test_pictures_of_numbers_keep_them(kind: str, scale: float) -> None:
    from PIL import Image

    values = (np.arange(64).reshape(8, 8) * scale).astype(kind)
    source = open_source(
        Odd(*[Image.fromarray(values)] * 2), None, tiny().net, batch_size=2, seed=0, unpack=None, workers=0
    )
    assert torch.equal(source.read(0)[0][0, 0], torch.from_numpy(values.astype(np.float32)))


def test_held_out_data_must_be_of_the_data_s_kind() -> None:
    labelled = {"cond": {"label": LABELS}, **OPTIONS}
    with pytest.raises(ConfigError, match=r"held_out_cond must have the conditions \['label'\] of the data, got \[\]"):
        fit(conditional(), DATA[:N], held_out=DATA[:9], **labelled)
    with pytest.raises(ConfigError, match="held_out_cond= are conditions of held_out= data"):
        fit(conditional(), DATA[:N], held_out_cond={"label": LABELS}, **labelled)
    with pytest.raises(ShapeError, match=r"held_out has samples of shape \(1, 2\), data of shape \(2,\)"):
        fit(tiny(), DATA[:N], held_out=DATA[:9, None], **OPTIONS)
    with pytest.raises(ShapeError, match=r"held_out has samples of shape \(1,\), data of shape \(2,\)"):
        fit(tiny(), DATA[:N], held_out=DATA[:9, :1], **OPTIONS)
    log = fit(conditional(), DATA[:N], held_out=TensorDataset(DATA[:9], LABELS[:9]), **labelled).log
    assert "held_out_loss" in log[-1]
    with pytest.raises(ShapeError, match=r"moments are of samples of shape \(3,\), the model sees \(2,\)"):
        fit(tiny(), DATA, moments=Moments.exact(torch.zeros(3), torch.eye(3)), **OPTIONS)


def test_other_labels_of_a_loader_are_another_run(tmp_path: Path) -> None:
    def loader(shift: int) -> DataLoader[Any]:
        return DataLoader(TensorDataset(DATA[:N], (LABELS + shift) % 3), batch_size=10)

    given = {**OPTIONS, "batch_size": None, "folder": tmp_path}
    fit(conditional(), loader(0), **given)
    fit(conditional(), loader(0), resume=True, **given)
    with pytest.raises(ConfigError, match="another run: cond"):
        fit(conditional(), loader(1), resume=True, **given)


def test_persistent_workers_are_refused() -> None:
    loader = DataLoader(Points(), batch_size=5, num_workers=1, persistent_workers=True)
    with pytest.raises(ConfigError, match="persistent workers go on drawing where they were"):
        fit(conditional(), loader, **{**OPTIONS, "batch_size": None})

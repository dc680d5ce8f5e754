"""The loop: no synchronisation, no growth, no harm to the caller's tensors, gradients, types."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import SDES, Net, gaussian
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from watchers import NoSync

from scoresde import VESDE, VPSDE, Langevin, ScoreModel, Solver, SolverError, Tableau, build_table, sample, solvers
from scoresde.noise import TapeNoise
from scoresde.sampling.executor import _Program, execute
from scoresde.solvers import SOLVERS
from scoresde.solvers.rows import Knot, Row

FIXED = sorted(set(SOLVERS) - {"probability_flow"})
X = torch.linspace(-1.5, 1.5, 12).reshape(4, 3)
TAPE = [torch.cos(3.0 * k + 2 * X) for k in range(110)]


def table_of(name: str, sde: str = "vp", steps: int = 6) -> Tableau:
    solver = solvers.named.by_name(name)
    assert isinstance(solver, Solver)
    return build_table(SDES[sde], solver, steps=steps)


def run(net: object, name: str = "dpmpp_2m", sde: str = "vp", x: Tensor = X, **options: object) -> Tensor:
    model = net if isinstance(net, ScoreModel) else ScoreModel(net, SDES[sde])
    out = sample(model, x_init=x, solver=table_of(name, sde), final="sample", noise=TAPE, **options)
    assert isinstance(out, Tensor)
    return out


# --- no synchronisation


KERNELS = {"none": [], **{n: [Langevin(snr=0.1, steps=2, norms=n)] for n in ("level", "sample", "batch")}}


@pytest.mark.parametrize("name", FIXED)
def test_the_loop_reads_no_number(name: str) -> None:
    """Once the weights are numbers, nothing is read from any tensor, on whatever device."""
    for predicts, sde in (("noise", "vp"), ("data", "ve"), ("velocity", "sub_vp"), ("edm", "ve")):
        table, x, seen = table_of(name, sde), X.clone(), list[float]()
        prepared = ScoreModel(lambda x, c: 0.5 * torch.tanh(x), SDES[sde], predicts=predicts).prepare(table.points, x)
        prepared.weights(table.prediction)
        with NoSync():
            execute(table, prepared, x, TapeNoise(TAPE, 1), observers=[lambda step, seen=seen: seen.append(step.t)])
        assert seen == [row.at.t for row in table.rows]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", FIXED)
def test_the_loop_never_waits_for_the_states_device(name: str, kernel: str) -> None:
    """A state without memory holds no numbers: whatever would read one, or branch on one, raises."""
    table, x, seen = table_of(name), torch.empty(4, 3, device="meta"), list[float]()
    prepared = ScoreModel(lambda x, c: x + c[:, None], VPSDE()).prepare(table.points, x)
    out = execute(
        table,
        prepared,
        x,
        TapeNoise([x] * 260, 1),
        kernels=KERNELS[kernel],
        observers=[lambda step: seen.append(float(step.prediction.readout.point.t))],
    )
    assert seen == [row.at.t for row in table.rows]
    assert out.device.type == "meta"


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).any())])
def test_the_check_for_waiting_can_fail(wait) -> None:
    def net(x: Tensor, c: Tensor) -> Tensor:
        wait(x)
        return x

    table, x = table_of("ddim"), X.clone()
    prepared = ScoreModel(net, VPSDE()).prepare(table.points, x)
    prepared.weights(table.prediction)
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        execute(table, prepared, x, TapeNoise(TAPE, 1))


# --- what the network may do with its tensors


class OwnBuffer(nn.Module):
    """Answers in one and the same tensor every time, as a captured graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.empty_like(X)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.buffer.copy_(torch.tanh(x))


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("name", FIXED)
def test_a_network_may_answer_with_its_input_a_view_or_its_own_buffer(name: str, sde: str) -> None:
    expected = run(lambda x, c: x.clone(), name, sde)
    for answer in (lambda x, c: x, lambda x, c: x.view_as(x), lambda x, c: x.T.T, lambda x, c: x.detach()):
        assert torch.equal(run(answer, name, sde), expected)
    assert torch.equal(
        run(lambda x, c: x[:, :1].expand_as(x), name, sde), run(lambda x, c: x[:, :1].repeat(1, 3), name, sde)
    )
    assert torch.equal(run(OwnBuffer(), name, sde), run(lambda x, c: torch.tanh(x), name, sde))


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_a_network_that_writes_to_its_input_is_told_so(sde: str) -> None:
    with pytest.raises(SolverError, match="changed its input in place; clone x"):
        run(lambda x, c: x.mul_(0.5), sde=sde)


def test_an_output_that_carries_a_sample_is_unpacked() -> None:
    class Output:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    assert torch.equal(run(lambda x, c: Output(torch.tanh(x))), run(lambda x, c: torch.tanh(x)))


# --- the caller's tensors


@pytest.mark.parametrize("name", [*FIXED, "probability_flow"])
def test_the_callers_tensors_are_read_only_and_their_strides_do_not_matter(name: str) -> None:
    solver = name if name == "probability_flow" else table_of(name)
    model = ScoreModel(lambda x, c, label: torch.tanh(x) + 0.01 * label.reshape(-1, 1, 1, 1).to(x), VPSDE())
    base = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    options = {"solver": solver, "final": "sample", "cond": {"label": torch.tensor([1, 2])}}
    if name != "probability_flow":
        options["noise"] = [torch.cos(k + base) for k in range(40)]

    def result(x: Tensor) -> Tensor:
        before, version, flag = x.clone(), x._version, x.requires_grad
        out = sample(model, x_init=x, **options)
        assert torch.equal(x, before)
        assert (x._version, x.requires_grad, out.requires_grad) == (version, flag, False)
        return out

    expected = result(base.clone())
    assert torch.equal(result(base.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(result(base.transpose(1, 3).contiguous().transpose(1, 3)), expected)
    assert torch.equal(result(base.clone().requires_grad_()), expected)
    wide = base[:1, :1].expand(2, 3, 4, 4)
    assert torch.equal(result(wide), result(wide.contiguous()))
    tape = [z.clone() for z in options.get("noise", [])]
    assert all(torch.equal(z, kept) for z, kept in zip(options.get("noise", []), tape, strict=True))


def test_parameters_and_modes_are_as_they_were() -> None:
    net = nn.Sequential(Net(), nn.Dropout(0.5))
    net[1].eval()  # frozen by its owner, in a network that is training

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            assert not any(module.training for module in self.inner.modules())
            return self.inner[1](self.inner[0](x, c))

    for sde in (None, VESDE()):
        model = ScoreModel(Both(), VPSDE())
        model.train()
        net[1].eval()
        modes = {name: module.training for name, module in model.named_modules()}
        assert True in modes.values()
        assert False in modes.values()
        sample(model, (2, 3), steps=3, seed=0, sde=sde)
        assert {name: module.training for name, module in model.named_modules()} == modes, sde
        net[0].act = lambda x, k: x[:, :1]
        with pytest.raises(ValueError, match="shape"):
            sample(model, (2, 3), steps=3, seed=0, sde=sde)
        net[0].act = None
        assert {name: module.training for name, module in model.named_modules()} == modes, sde
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


# --- how often and with what the network is called


@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("name", FIXED)
def test_the_network_is_called_once_a_row_at_the_rows_log_snr(name: str, sde: str) -> None:
    net, table = Net(), table_of(name, sde)
    result = sample(ScoreModel(net, SDES[sde]), (4, 3), solver=table, final="sample", seed=0, full_output=True)
    assert result.nfe.tolist() == [table.nfe] * 4
    assert [shape for shape, _ in net.calls] == [(4, 3)] * table.nfe
    expected = [max(-40.0, min(40.0, row.at.log_snr)) for row in table.rows]
    assert [c for _, c in net.calls] == pytest.approx(expected, rel=1e-6)


def test_a_network_is_given_its_scaled_input() -> None:
    net = Net()
    table = table_of("ddim", "ve", steps=3)
    states: list[Tensor] = [X]
    sample(
        ScoreModel(net, VESDE()), x_init=X, solver=table, final="sample", on_step=lambda s: states.append(s.x.clone())
    )
    for row, x, seen in zip(table.rows, states, net.inputs, strict=False):
        torch.testing.assert_close(seen, x / math.hypot(row.at.alpha, row.at.sigma))


# --- memory


class Storages(TorchDispatchMode):
    """Count results of state size whose memory is none of the arguments'."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.fresh = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        known = {v.untyped_storage().data_ptr() for v in given if isinstance(v, Tensor)}
        for result in out if isinstance(out, tuple | list) else [out]:
            if isinstance(result, Tensor) and result.numel() == self.size:
                self.fresh += result.untyped_storage().data_ptr() not in known
        return out


@pytest.mark.parametrize("name", FIXED)
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    """With a network that answers in its own buffer, the loop allocates a few states at the start and no more."""
    x = torch.linspace(-1, 1, 999)
    buffer = torch.empty_like(x)
    counts, places = [], []
    for steps in (12, 48):
        table = table_of(name, steps=steps)
        pointers: set[int] = set()

        def net(x: Tensor, c: Tensor, seen: set[int] = pointers) -> Tensor:
            seen.add(x.data_ptr())
            return torch.tanh(x, out=buffer)

        state = x.clone()
        prepared = ScoreModel(net, VPSDE()).prepare(table.points, state)
        with torch.no_grad(), Storages(len(x)) as mode:
            execute(table, prepared, state, TapeNoise([x] * 260, 1))
        counts.append(mode.fresh)
        places.append(len(pointers))
    held = max((len(w) for row in table.rows for w in (row.noise, row.anchor_noise)), default=0)
    assert counts[0] == counts[1] <= table.memory + max(held, 1) + 4
    # The state takes turns among them, in an order that 12 steps need not go through.
    assert max(places) <= counts[0] + 1


# --- gradients


def loss(net: Net, x: Tensor, shift: Tensor, name: str, **options: object) -> Tensor:
    tape = [z.double() for z in TAPE]
    model = ScoreModel(net, VPSDE())
    out = sample(
        model, x_init=x, cond={"shift": shift}, solver=table_of(name, steps=4), final="sample", noise=tape, **options
    )
    return (out * torch.arange(1.0, 13.0).reshape(4, 3)).sum()


@pytest.mark.parametrize(
    ("name", "kernel"), [*((name, "none") for name in FIXED), *(("euler_maruyama", k) for k in KERNELS if k != "none")]
)
def test_gradients_equal_finite_differences(name: str, kernel: str) -> None:
    net, x = Net(dtype=torch.float64), X.double().requires_grad_()
    shift = torch.linspace(0, 0.3, 4, dtype=torch.float64).requires_grad_()
    options = {"kernels": KERNELS[kernel], "differentiable": True}
    value = loss(net, x, shift, name, **options)
    grads = torch.autograd.grad(value, [x, shift, net.weight])
    with torch.no_grad():
        assert loss(net, x, shift, name, kernels=KERNELS[kernel]).item() == pytest.approx(value.item(), rel=1e-12)
        step = 1e-6
        for place, grad in zip(((x, (1, 2)), (shift, (3,)), (net.weight, ())), grads, strict=True):
            tensor, index = place
            ends = []
            for sign in (1, -1):
                tensor[index] += sign * step
                ends.append(loss(net, x, shift, name, kernels=KERNELS[kernel]).item())
                tensor[index] -= sign * step
            assert grad[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("name", FIXED)
def test_the_differentiable_loop_gives_the_same_numbers(name: str) -> None:
    assert torch.equal(run(Net(), name, differentiable=True).detach(), run(Net(), name))


# --- types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*FIXED, "probability_flow"])
def test_half_types_are_carried_in_float32(name: str, dtype: torch.dtype) -> None:
    solver = name if name == "probability_flow" else table_of(name)
    model = ScoreModel(Net(), VPSDE())
    full = sample(model, (4, 3), solver=solver, final="sample", seed=3)
    half = sample(model, (4, 3), solver=solver, final="sample", seed=3, dtype=dtype)
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))
    start = X.to(dtype)
    given = sample(model, x_init=start, solver=solver, final="sample", seed=3)
    assert given.dtype == dtype
    assert torch.equal(given, sample(model, x_init=start.float(), solver=solver, final="sample", seed=3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_network_is_near_the_float32_network(dtype: torch.dtype) -> None:
    net = Net()
    expected = run(net, "ddim")
    got = run(Net().to(dtype), "ddim")
    assert got.dtype == torch.float32
    assert 0 < float((got - expected).abs().max()) < 20 * torch.finfo(dtype).eps * float(expected.abs().max())


@pytest.mark.parametrize("name", [*FIXED, "probability_flow"])
def test_a_float64_state_stays_float64_with_a_float32_network(name: str) -> None:
    """The network's answer is rounded, nothing else is: with an answer of 1/4 the result is exact to float64."""

    class Quarter(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            assert x.dtype == self.weight.dtype
            return 0.25 * torch.ones_like(x)

    solver = name if name == "probability_flow" else table_of(name)
    x = X.double()
    results = []
    for dtype in (torch.float32, torch.float64):
        model = ScoreModel(Quarter(dtype), VPSDE())
        results.append(sample(model, x_init=x, solver=solver, final="sample", seed=1))
        assert results[-1].dtype == torch.float64
        if name != "probability_flow":
            smooth = sample(model, x_init=x, solver=solver, final="sample", seed=1, differentiable=True)
            assert torch.equal(smooth, results[-1])
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)


def test_the_exact_gaussian_survives_float32() -> None:
    """float32 against float64 on the same tape: errors of a few units in the last place, not of a cancellation."""
    model = gaussian()
    x, tape = X[:, 0], [z[:, 0] for z in TAPE]
    for name in FIXED:
        table = table_of(name, steps=20)
        one = sample(model, x_init=x, solver=table, noise=tape, final="sample")
        two = sample(model, x_init=x.double(), solver=table, noise=[z.double() for z in tape], final="sample")
        assert float((one.double() - two).abs().max()) < 3e-6, name


def test_the_worked_example_of_the_compiled_table() -> None:
    late, middle, early = Knot(1.0, 0.1, 1.0), Knot(0.5, 0.6, 0.8), Knot(0.1, 0.9, 0.3)
    table = Tableau("two", "data", (Row(late, (0.5, 0.4)), Row(middle, (0.6, 0.3, -0.1))), late, early, 1.0)
    program = _Program(table, (2.0, 3.0), (5.0, 7.0))
    first, second = program.stages
    assert first.sums == ((2, 2.0, 1, ((5.0, 0),)), (3, 0.5, 1, ((0.4, 2),)))
    assert (second.x, second.new) == (3, 1)
    assert second.sums == ((1, pytest.approx(1.5), 3, ((pytest.approx(2.1), 0), (-0.1, 2))),)
    assert program.size == 4

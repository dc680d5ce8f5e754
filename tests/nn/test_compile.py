"""One graph and the same numbers under torch.compile, and the layout of channels kept last."""

from __future__ import annotations

import copy

import pytest
import torch
from network_cases import build, distance, inputs

from scoresde.nn import NETWORKS

# One of each network and of its options. "eager" traces the graph and leaves out the code's generation; "aot_eager"
# traces the gradients as well, which takes its time.
COMPILED = {
    "mlp": "aot_eager",
    "residual steps": "eager",
    "magnitudes": "eager",
    "patches": "eager",
    "patches of signals": "eager",
    "points": "eager",
}


def test_no_network_is_left_out() -> None:
    assert {type(build(case)).__name__ for case in COMPILED} == set(NETWORKS)


# torch's own decompositions, at their first use.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("case", COMPILED)
def test_a_compiled_network_is_one_graph_with_the_same_values_and_gradients(case: str) -> None:
    net = build(case, torch.float32)
    x, c_noise, label = (v.float() if v.is_floating_point() else v for v in inputs(case, batch=3))
    label[1] = -1
    compiled = torch.compile(copy.deepcopy(net), backend=COMPILED[case], fullgraph=True)
    results = []
    for one in (net, compiled):
        out = one(x, c_noise, label)
        out.square().mean().backward()
        results.append((out, [p.grad for p in one.parameters()]))
    (plain, slopes), (other, others) = results
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
    for one, two in zip(slopes, others, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("case", ["images", "residual steps", "magnitudes"])
def test_channels_that_are_kept_last_stay_so_and_give_the_same(case: str) -> None:
    net = build(case, torch.float32)
    x, c_noise, label = (v.float() if v.is_floating_point() else v for v in inputs(case))
    expected = net(x, c_noise, label)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    layouts: list[bool] = []

    def look(part: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        for value in (given[0], out):
            if value.ndim == 4 and min(value.shape[1:]) > 1:
                layouts.append(value.is_contiguous(memory_format=torch.channels_last))

    for part in last.modules():
        if not [*part.children()]:
            part.register_forward_hook(look)
    out = last(x.to(memory_format=torch.channels_last), c_noise, label)
    assert distance(out, expected) < 1e-5 * float(expected.detach().abs().max())
    assert len(layouts) > 20
    assert all(layouts)


# torch's own decompositions, at their first use.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("case", ["patches", "points"])
def test_an_exported_network_serves_batches_of_any_size(case: str) -> None:
    net = build(case, torch.float32).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    given, other = (tuple(v.float() if v.is_floating_point() else v for v in inputs(case, batch=n)[:2]) for n in (4, 7))
    shapes = {"x": {0: batch}, "c_noise": {0: batch}}
    program = torch.export.export(net, given, dynamic_shapes=shapes, strict=False).module()
    torch.testing.assert_close(program(*other), net(*other), rtol=1e-5, atol=1e-5)

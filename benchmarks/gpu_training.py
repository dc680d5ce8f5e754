"""Training loops of one U-Net in bfloat16, for gpu.py: by hand, ours, and as diffusers' examples do it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoresde import VPSDE, ScoreModel
from scoresde.nn import UNet
from scoresde.noise import normal, stream
from scoresde.training import Trainer


@dataclass(frozen=True)
class Setting:
    """A network, the images of a batch by their side, and the steps that are timed."""

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    batch: Mapping[int, int]
    steps: int


# Small or not; the large one has 33 million parameters.
UNETS = {
    True: Setting(8, (1, 2, 2), 1, (), {32: 2, 64: 1}, 1),
    False: Setting(136, (1, 2, 2, 2), 2, (1,), {32: 256, 64: 128}, 10),
}


def make_unet(device: torch.device, small: bool) -> UNet:
    setting = UNETS[small]
    return UNet(
        3,
        width=setting.width,
        multipliers=setting.multipliers,
        blocks=setting.blocks,
        attention=setting.attention,
    ).to(device)


def rate(call: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Return the seconds of some calls, after one that does not count."""
    took = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return took[1:]


def by_hand(net: nn.Module, x: Tensor) -> Callable[[], object]:
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    average = [p.detach().clone() for p in parameters]
    generator = stream(0, device=x.device)

    def step() -> None:
        t = torch.rand(len(x), generator=generator, device=x.device) * (1 - 1e-5) + 1e-5
        b = t * (0.1 + 9.95 * t)
        variance = -torch.expm1(-b)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        x_t = (-0.5 * b).exp().view(-1, 1, 1, 1) * x + variance.sqrt().view(-1, 1, 1, 1) * noise
        with torch.autocast(x.device.type, torch.bfloat16):
            out = net(x_t, -b - variance.log())
        loss = nn.functional.mse_loss(out.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-3)

    return step


def ours(net: nn.Module, x: Tensor) -> Callable[[], object]:
    trainer = Trainer(ScoreModel(net, VPSDE()), learning_rate=1e-4, autocast=torch.bfloat16)
    return lambda: trainer(x)


def diffusers(net: nn.Module, x: Tensor) -> Callable[[], object]:
    """The loop of diffusers' examples: their scheduler, average and learning rate, under accelerate."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(mixed_precision="bf16", cpu=x.device.type == "cpu")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, 500, 100_000)
    prepared, optimizer, schedule = accelerator.prepare(net, optimizer, schedule)
    average, scheduler = EMAModel(prepared.parameters(), decay=0.999), DDPMScheduler(1000)
    average.to(x.device)
    generator = stream(0, device=x.device)

    def step() -> float:
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        index = torch.randint(1000, (len(x),), generator=generator, device=x.device)
        with accelerator.accumulate(prepared):
            loss = nn.functional.mse_loss(prepared(scheduler.add_noise(x, noise, index), index.float()).float(), noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.step(prepared.parameters())
        return loss.detach().item()

    return step


LOOPS = {"hand": by_hand, "ours": ours, "diffusers": diffusers}


def train(device: torch.device, small: bool, side: int, *, compiled: bool) -> Iterator[Mapping[str, object]]:
    """Yield the figures of every loop, one after the other; the memory is the most that the loop held on a GPU.

    A CPU has no use for what the compiler would make of it, and waits minutes for that: there its graph runs as it is.
    """
    setting, start = UNETS[small], make_unet(device, small)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    cases = [(name, False) for name in LOOPS] + [(name, True) for name in ("hand", "ours")]
    if compiled:
        cases = [(name, last) for last in (False, True) for name in ("hand", "ours")]
    for name, channels_last in cases:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        net = copy.deepcopy(start).to(memory_format=layout)
        x = normal((setting.batch[side], 3, side, side), stream(0)).to(device, memory_format=layout)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step = LOOPS[name](torch.compile(net, backend=backend) if compiled else net, x)
        step()  # what is compiled, and what cuDNN tries
        first = time.perf_counter() - began
        took = rate(lambda step=step: [step() for _ in range(setting.steps)], device, 2)
        row: dict[str, object] = {"loop": name, "shape": tuple(x.shape), "channels_last": channels_last}
        row |= {
            "compiled": backend if compiled else None,
            "parameters": sum(p.numel() for p in net.parameters()),
            "first_s": first,
        }
        row["images_a_second"] = len(x) * setting.steps / min(took)
        if device.type == "cuda":
            row["MiB"] = torch.cuda.max_memory_allocated() / 2**20
        yield row
        del step, net, x

"""A model trained in a loop of one's own with accelerate: on one CPU here, on several GPUs with the same lines.

accelerate prepares the network, the optimiser and the data; the model is made around the prepared network, and the
average sees through its wrapper. Every process draws times and noise of its own. The first one writes the model, whose
checkpoint knows no wrapper, reads it again and samples. The last line is a distance to fresh data beside its floor,
which is what as many real points measure.

Run: python examples/accelerate_training.py [--quick]      (half a minute; needs pip install accelerate)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from scoresde import EMA, CosineVPSDE, Moments, ScoreModel, denoising_score_matching, sample
from scoresde.data import pinwheel
from scoresde.metrics import floor, sliced_wasserstein
from scoresde.nn import MLP
from scoresde.noise import stream

try:
    from accelerate import Accelerator
except ImportError:
    raise SystemExit("this example needs accelerate; pip install accelerate") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    options = parser.parse_args()
    epochs, n = (1, 200) if options.quick else (40, 1000)

    data = pinwheel(20_000, seed=0)
    loader = DataLoader(
        TensorDataset(data), batch_size=512, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)
    )
    network = MLP(2, width=128, depth=3)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)

    accelerator = Accelerator()
    network, optimiser, loader = accelerator.prepare(network, optimiser, loader)
    model = ScoreModel(network, CosineVPSDE(), predicts="v", moments=Moments.of(data))
    ema = EMA(network, decay=0.995, warmup=True)
    draws = stream(0, "times and noise", accelerator.process_index)
    for epoch in range(epochs):
        for (x,) in loader:
            loss = denoising_score_matching(model, x, generator=draws).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            ema.update()
        if (epoch + 1) % 5 == 0:
            accelerator.print(f"epoch {epoch + 1:>3}: loss of the last batch {loss.item():.3f}")

    if accelerator.is_main_process:
        folder = Path("runs/examples/accelerate_training")
        model.save(folder, ema=ema.state_dict())
        x = sample(ScoreModel.load(folder), n, solver="flow_abm:20", seed=0)  # with the averaged weights
        fresh = pinwheel(4 * n, seed=1)
        real = floor(sliced_wasserstein, fresh, n)
        distance = sliced_wasserstein(x, fresh[:n])
        print(f"sliced Wasserstein-2 to fresh data {distance:.3f}, real {real.mean:.3f}\nmodel: {folder}/")


if __name__ == "__main__":
    main()

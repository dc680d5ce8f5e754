"""A model trained by Lightning: the loss, the averaged weights and the sampler are ours, the loop is theirs.

A ``ScoreModel`` is a module whose parameters are its network's, so it stands in a ``LightningModule`` as any other. The
loss draws its times and noise from a generator of its own; the average follows the network from batch to batch, and
``ema.applied()`` puts it into the network for sampling. The last line is a distance to fresh data beside its floor,
which is what as many real points measure.

Run: python examples/lightning_training.py [--quick]      (half a minute; needs pip install lightning)
"""

from __future__ import annotations

import argparse
import logging
import warnings

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from scoresde import EMA, VPSDE, Moments, ScoreModel, denoising_score_matching, sample
from scoresde.data import moons
from scoresde.metrics import floor, sliced_wasserstein
from scoresde.nn import MLP
from scoresde.noise import stream

try:
    import lightning
except ImportError:
    raise SystemExit("this example needs Lightning; pip install lightning") from None


class Training(lightning.LightningModule):
    """Denoising score matching with an average of the weights."""

    def __init__(self, model: ScoreModel, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.model, self.learning_rate = model, learning_rate
        self.draws = stream(0, "times and noise")

    def on_fit_start(self) -> None:
        self.ema = EMA(self.model.net, decay=0.995, warmup=True)  # here the network is on its device

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return denoising_score_matching(self.model, batch[0], generator=self.draws).mean()

    def on_train_batch_end(self, *outputs: object) -> None:
        self.ema.update()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: the network has hardly learned")
    options = parser.parse_args()
    epochs, n = (1, 200) if options.quick else (25, 1000)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")

    data = moons(20_000, seed=0)
    loader = DataLoader(
        TensorDataset(data), batch_size=512, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0)
    )
    training = Training(ScoreModel(MLP(2, width=128, depth=3), VPSDE(), moments=Moments.of(data)))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, loader)

    model = training.model.cpu()
    with training.ema.applied():
        x = sample(model, n, solver="flow_abm:20", seed=0)
    fresh = moons(4 * n, seed=1)
    real = floor(sliced_wasserstein, fresh, n)
    distance = sliced_wasserstein(x, fresh[:n])
    print(f"{trainer.global_step} steps; sliced Wasserstein-2 to fresh data {distance:.3f}, real {real.mean:.3f}")


if __name__ == "__main__":
    main()

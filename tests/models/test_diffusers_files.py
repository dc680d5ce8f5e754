"""Models of diffusers from their files: samples are those of their own loops and pipelines, in float64 to 1e-5."""

from __future__ import annotations

import copy
import functools
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import small_dit, small_unet, small_unet1d
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scoresde import (
    DDPM,
    VPSDE,
    CheckpointError,
    ConfigError,
    DTypeError,
    ScoreModel,
    adapt,
    from_diffusers,
    guided,
    sample,
    solvers,
)
from scoresde.models.diffusers_files import count_classes, is_of_diffusers, read_betas, read_event
from scoresde.noise import normal, stream

diffusers = pytest.importorskip("diffusers")

F64 = torch.float64
LABEL = torch.tensor([1, 2])
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": functools.partial(small_unet, num_class_embeds=3),
    "unet1d": small_unet1d,
    "dit": functools.partial(small_dit, learned=False),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return NETWORKS[request.param]()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return NETWORKS["unet"]()


def start(network: nn.Module) -> Tensor:
    return normal((2, *read_event(network)), stream(5), dtype=F64)


def told(network: nn.Module, name: str) -> dict[str, Tensor]:
    return {name: LABEL} if count_classes(network) else {}


def loop(scheduler: Any, network: nn.Module, steps: int) -> Tensor:
    """Run diffusers' own loop, in float64 from the betas on."""
    net, x = copy.deepcopy(network).double(), start(network)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            answer = net(x, t.expand(2), **told(network, "class_labels")).sample
            x = scheduler.step(answer, t, x).prev_sample
    return x


def widen(scheduler: Any) -> None:
    """Give a scheduler its betas in float64."""
    betas = read_betas(scheduler.config)
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, (1 - betas).cumprod(0)


def save(network: nn.Module, scheduler: Any, folder: Path) -> ScoreModel:
    """Save both as a pipeline does, and read the model."""
    network.save_pretrained(folder / ("transformer" if "Transformer" in type(network).__name__ else "unet"))
    scheduler.save_pretrained(folder / "scheduler")
    return from_diffusers(folder).to(F64)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_ddim(kind: str, network: nn.Module, tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=200, clip_sample=False, prediction_type=kind)
    widen(scheduler)
    expected = loop(scheduler, network, 20)
    model = save(network, scheduler, tmp_path)
    chain = DDPM.from_betas(read_betas(scheduler.config)).take(scheduler.timesteps.flip(0))
    found = sample(model, x_init=start(network), solver=chain.ddim(), cond=told(network, "label") or None)
    assert_same(found, expected)


def test_ddpm(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_ddpm

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=30, clip_sample=False, beta_end=0.4)
    widen(scheduler)
    z = start(network)
    tape = [normal(z.shape, stream(6, k), dtype=F64) for k in range(30)]
    left = iter(tape)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: next(left))
    expected = loop(scheduler, network, 30)
    model = save(network, scheduler, tmp_path)
    found = sample(
        model,
        shape=z.shape,
        dtype=F64,
        solver=DDPM.from_betas(read_betas(scheduler.config)).ancestral(),
        noise=[z, *tape],
        cond=told(network, "label") or None,
    )
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "solver"),
    [("DPMSolverMultistepScheduler", solvers.dpmpp_2m()), ("UniPCMultistepScheduler", solvers.unipc(order=2))],
)
def test_multistep_solvers(name: str, solver: Any, network: nn.Module, tmp_path: Path) -> None:
    # The last of their steps, into clean data, is of first order in both.
    options = {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"}
    scheduler = getattr(diffusers, name)(num_train_timesteps=200, **options)
    widen(scheduler)
    expected = loop(scheduler, network, 10)
    model = save(network, scheduler, tmp_path)
    times = (scheduler.timesteps.double() + 1) / 200
    found = sample(model, x_init=start(network), solver=solver, times=times, cond=told(network, "label") or None)
    assert_same(found, expected)


def test_flow_matching(network: nn.Module, tmp_path: Path) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    net, x = copy.deepcopy(network).double(), start(network)
    scheduler.set_timesteps(12)
    with torch.no_grad():
        for t in scheduler.timesteps:
            # Its times are float32; a network in float64 is told them as they are.
            answer = net(x, t.expand(2), **told(network, "class_labels")).sample
            x = scheduler.step(answer, t, x).prev_sample
    model = save(network, scheduler, tmp_path)
    found = sample(
        model,
        x_init=start(network),
        solver="ddim",
        times=scheduler.sigmas[:-1].double(),
        cond=told(network, "label") or None,
    )
    assert_same(found, x)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("learned", [True, False])
def test_the_pipeline_of_a_transformer(learned: bool, scale: float, tmp_path: Path) -> None:
    """With class labels, guidance, and the variance channels that its schedulers do not use."""
    transformer = small_dit(learned=learned)
    with torch.random.fork_rng():
        decoder = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=4)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=200, clip_sample=False)
    pipeline = diffusers.DiTPipeline(transformer, decoder, scheduler, id2label={0: "a", 1: "b"})
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [7, 3],
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=10,
        output_type="pt",
    ).images
    model = from_diffusers(tmp_path)
    assert model.variance == ("learned" if learned else "fixed")
    if scale != 1:
        model = guided(model, scale)  # the label of none is known
    z = torch.empty(2, 4, 4, 4).normal_(generator=torch.Generator().manual_seed(1))
    chain = DDPM.from_betas(read_betas(scheduler.config)).take(scheduler.timesteps.flip(0))
    latents = sample(model, x_init=z, solver=chain.ddim(), cond={"label": torch.tensor([7, 3])})
    with torch.no_grad():
        found = (decoder.decode(latents / decoder.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert float((images - found).abs().max()) < 1e-5
    assert float(images.std()) > 0.02, "they are pictures of something"


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
)
def test_schedules_are_diffusers_own(config: dict[str, Any]) -> None:
    expected = diffusers.DDIMScheduler(**config).betas.double()
    torch.testing.assert_close(read_betas(config), expected, rtol=2e-4, atol=2e-6)


def test_what_a_configuration_says_of_the_samples(unet: nn.Module) -> None:
    assert (read_event(unet), count_classes(unet)) == ((1, 8, 8), 3)
    assert (read_event(small_unet1d()), count_classes(small_unet1d())) == ((2, 16), None)
    assert (read_event(small_dit()), count_classes(small_dit())) == ((4, 4, 4), 1000)
    assert read_event(small_unet(sample_size=(8, 4))) == (1, 8, 4)
    assert count_classes(small_unet(class_embed_type="timestep")) is None
    with pytest.raises(ConfigError, match=r"sample_size of UNet2DModel has 2 sizes, got \(8,\)"):
        read_event(small_unet(sample_size=(8,)))
    with pytest.raises(ConfigError, match=r'UNet2DModel has in_channels 1 and sample_size None.*"sample_size": 32'):
        read_event(small_unet(sample_size=None))


def test_conditions_go_by_their_names_here(unet: nn.Module, tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50)
    model = save(unet, scheduler, tmp_path / "a")
    with pytest.raises(ConfigError, match="unknown condition 'labels'; did you mean 'label'"):
        sample(model, (2, 1, 8, 8), steps=2, cond={"labels": LABEL})
    with pytest.raises(ConfigError, match=r'takes for no label is not known; pass negative=.*\{"label": 1000\}'):
        sample(guided(model, 2.0), (2, 1, 8, 8), steps=2, cond={"label": LABEL})
    series = save(small_unet1d(), scheduler, tmp_path / "b")
    with pytest.raises(ConfigError, match="unknown condition 'label'"):
        sample(series, (2, 2, 16), steps=2, cond={"label": LABEL})


def test_a_transformer_by_its_former_name(tmp_path: Path) -> None:
    transformer = small_dit()
    model = save(transformer, diffusers.DDIMScheduler(), tmp_path)
    file = tmp_path / "transformer" / "config.json"
    config = {**json.loads(file.read_text()), "_class_name": "Transformer2DModel"}
    file.write_text(json.dumps(config))
    again = from_diffusers(tmp_path).to(F64)
    x, cond = start(transformer), {"label": LABEL}
    assert torch.equal(again(x, 0.5, cond=cond).noise, model(x, 0.5, cond=cond).noise)
    file.write_text(json.dumps({**config, "norm_type": "layer_norm"}))
    with pytest.raises(CheckpointError, match="holds a 'Transformer2DModel'; built are DiT"):
        from_diffusers(tmp_path)


def test_other_files_are_refused(unet: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder of diffusers"):
        from_diffusers(tmp_path / "none")
    assert not is_of_diffusers(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"holds no network: no unet/, no transformer/ and no config.json; name a"
    ):
        from_diffusers(tmp_path)
    with pytest.raises(CheckpointError, match=r"scheduler_config.json cannot be read"):
        from_diffusers(tmp_path, net=unet)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    assert is_of_diffusers(tmp_path)
    with pytest.raises(ConfigError, match="has a scheduler 'EDMEulerScheduler' of another kind"):
        from_diffusers(tmp_path, net=unet)
    config = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "beta_schedule": "exp"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="unknown beta_schedule 'exp'"):
        from_diffusers(tmp_path, net=unet)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**config, "beta_schedule": "linear"}))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "os.system"}))
    with pytest.raises(CheckpointError, match=r"holds a 'os.system'; built are DiTTransformer2DModel, UNet1DModel"):
        from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(CheckpointError, match="cannot be loaded by diffusers"):
        from_diffusers(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"\.bin is a pickle, .*: scoresde convert \S+\.bin \S+\.safetensors"):
        from_diffusers(tmp_path)
    assert math.isfinite(
        float(sample(from_diffusers(tmp_path, net=unet), (1, 1, 8, 8), steps=2, cond={"label": 1}).sum())
    )


FIELDS: dict[str, tuple[str, dict[str, object], str]] = {
    "indices": ("scheduler", {"num_train_timesteps": "x"}, "num_train_timesteps must be a whole number, got 'x'"),
    "too many": ("scheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps must be at most 1000000, got"),
    "no start": ("scheduler", {"beta_start": None}, "beta_start must be a number, got None"),
    "end": ("scheduler", {"beta_end": 3.0}, r"beta_end must lie in \[0, 1\], got 3"),
    "betas": ("scheduler", {"trained_betas": [0.1, "x"]}, r"trained_betas\[1\] must be a number"),
    "schedule": ("scheduler", {"beta_schedule": [1]}, "beta_schedule must be a text"),
    "rescale": ("scheduler", {"rescale_betas_zero_snr": "no"}, "rescale_betas_zero_snr must be true or false"),
    "channels": ("unet", {"in_channels": "x"}, "in_channels must be a whole number"),
    "size": ("unet", {"sample_size": {"a": 1}}, "sample_size must be of the kind"),
    "class": ("unet", {"_class_name": ["UNet2DModel"]}, "_class_name must be a text"),
    "wide": (
        "unet",
        {"block_out_channels": [100_000, 100_000]},
        "cannot be loaded by diffusers: it has a tensor of sha",
    ),
    "deep": ("unet", {"layers_per_block": 10**7}, "cannot be loaded by diffusers: it has more tensors"),
    "other": ("unet", {"layers_per_block": 2}, "weights that are not its network's: missing down_blocks"),
    "no labels": ("unet", {"num_class_embeds": None}, "not its network's: unexpected class_embedding.weight"),
    "groups": ("unet", {"norm_num_groups": 0}, "cannot be loaded by diffusers: integer modulo by zero"),
}


@pytest.fixture(scope="module")
def saved(unet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    save(unet, diffusers.DDIMScheduler(num_train_timesteps=50), folder)
    return folder


@pytest.mark.parametrize("name", FIELDS)
def test_altered_configurations_are_refused_by_their_field(name: str, saved: Path, tmp_path: Path) -> None:
    """diffusers itself would fill the memory, or draw the weights that are missing and go on."""
    part, change, message = FIELDS[name]
    folder = shutil.copytree(saved, tmp_path / "m")
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message) as caught:
        from_diffusers(folder)
    assert "\n" not in str(caught.value)


def test_weights_are_all_there_and_finite(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "m")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    for changed, message in (
        ({name: value for name, value in whole.items() if name != "conv_in.weight"}, "missing conv_in.weight; take"),
        ({**whole, "more": torch.zeros(1)}, "unexpected more; take another copy"),
        ({**whole, "conv_in.bias": torch.full((32,), math.nan)}, "conv_in.bias has values that are not finite"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            from_diffusers(folder)
    (folder / "scheduler" / "scheduler_config.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError, match=r"scheduler_config.json is damaged, it is no JSON"):
        from_diffusers(folder)
    with pytest.raises(DTypeError, match="net must be a network"):
        from_diffusers(folder, net=3)


def test_log_snr_fed_to_a_network_of_diffusers_is_noticed(unet: nn.Module) -> None:
    with pytest.warns(
        UserWarning, match="UNet2DModel of diffusers was made for timesteps 0 ... 999, and condition_on='log_"
    ):
        ScoreModel(unet, VPSDE())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(unet, time="index", betas=DDPM.linear(100).betas)
        ScoreModel(unet, VPSDE(), condition_on=lambda t: 1000 * t)

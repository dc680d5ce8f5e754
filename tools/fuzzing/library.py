"""Cases of the library: calls of its functions, of which the last one sets ``out``, what must not be NaN."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from fuzzing.values import (
    Cases,
    call,
    chains,
    exact_models,
    grids,
    joined,
    lines,
    number,
    one_of,
    options,
    rarely,
    said,
    sdes,
    some_sdes,
    tensor,
    whole,
)
from scoresde.solvers import SOLVERS

NAMES = sorted(set(SOLVERS) - {"probability_flow"})
SOLVED = one_of("'ddim'", "'heun'", "'dpmpp_2m'", "'ancestral'", "'probability_flow'")
FINALS = one_of("'denoise'", "'sample'", "'mean'", "'nothing'", "None")
STATES = ("(3, 2)",)
SIGNS = one_of("0.25", "0.5", "0.999", "1e-9")

diffusions: Cases = lines(
    said("sde = ", sdes),
    joined(
        "t = {low} + (sde.t_max - sde.t_min) * torch.linspace({a}, 1, 5, dtype=torch.float64)",
        low=one_of("sde.t_min"),
        a=SIGNS,
    ),
    one_of(
        "out = (sde.alpha(t), sde.sigma(t), sde.log_snr(t), sde.time(sde.log_snr(t)), sde.diffusion(t[:-1]))",
        "out = sde.transition_weights(t[:-1], t[1:])",
        "out = sde.posterior_weights(t[:-1], t[1:])",
        "out = sde.marginal(data_like((5, 2)), t)",
        "out = (sde.drift(data_like((5, 2)), t), sde.prior().variance)",
        "out = sde.reverse(lambda x, t: -x).drift(data_like((5, 2)), t[1])",
        "out = sde.at(nan)",
        "out = sde.time(torch.tensor([inf, 0.0]))",
    ),
)
on_grids: Cases = lines(
    said("sde = ", some_sdes),
    joined(
        "table = build_table(sde, solvers.{name}(), steps={n}, times={grid})",
        name=one_of(*NAMES),
        n=whole(1, 9),
        grid=grids,
    ),
    one_of(
        "out = table.law(0.5, 2.0)",
        "out = (table.affine_map(), table.amplification())",
        "out = Tableau.from_json(table.to_json()).law()",
    ),
)
sampling: Cases = lines(
    said("model = ", exact_models),
    said(
        "out = ",
        call(
            "sample",
            one_of("model"),
            rarely(
                one_of("3", "(3, 2)", "(0, 2)"),
                one_of("0", "-1", "(3,)", "2**63", "10**400", "None", "'a'", "(3, 2.0)"),
            ),
            solver=rarely(
                one_of(*(repr(name) for name in NAMES)),
                one_of("'probability_flow'", "'heunn'", "3", "[]", "solvers.heun"),
            ),
            steps=whole(1, 6),
            times=grids,
            final=FINALS,
            seed=whole(0, 9),
            first_sample=whole(0, 9),
            chunk_size=whole(1, 4),
            dtype=one_of("torch.float32", "torch.float64", "torch.float16", "torch.int64", "'float32'"),
            x_init=tensor(*STATES),
            kernels=one_of("[Langevin()]", "[MALA()]", "[3]", "Langevin()"),
            on_nonfinite=one_of("'raise'", "'freeze'", "'ignore'"),
            on_step=one_of("lambda step: None", "3"),
        ),
    ),
)
there_and_back: Cases = lines(
    said("model = ", exact_models),
    said("x = ", tensor(*STATES)),
    st.one_of(
        said("out = encode(model, x", options(solver=SOLVED, steps=whole(1, 5), times=grids), ")"),
        said("out = decode(model, x", options(solver=SOLVED, steps=whole(1, 5), times=grids), ")"),
        joined("out = denoise(model, x, noise_std={std}, steps=3)", std=number(0.01, 0.9)),
        joined("out = langevin(model, x, {step}, {n}, seed=0)", step=number(1e-6, 0.1), n=whole(1, 5)),
        joined("out = interpolate(model, x, x.flip(0), {n}, steps=2, solver='ddim')", n=whole(1, 4)),
        joined("out = edit(model, x, strength={strength}, steps={n})", strength=number(0.1, 0.9), n=whole(1, 4)),
        joined("out = impute(model, x, steps=2{more})", more=options(noise_std=number(0.0, 0.5), draws=whole(1, 2))),
    ),
)
transforms: Cases = lines(
    said(
        "transform = ",
        st.one_of(
            joined("Affine({a}, {b})", a=number(-9.0, 9.0), b=number(0.01, 9.0)),
            joined("Affine.from_range({a}, {b})", a=number(-9.0, 0.0), b=number(0.01, 9.0)),
            said("Affine.standardise(", tensor("(3, 2)", "(9, 2, 4)"), ")"),
            joined("Logit({e}, {a}, {b})", e=number(0.0, 0.4), a=number(-9.0, -4.0), b=number(4.0, 9.0)),
            joined("Dequantise({n}, {a}, {b})", n=whole(2, 300), a=number(-9.0, 0.0), b=number(0.01, 9.0)),
            joined("Compose((Affine({a}, 2.0), Logit(1e-3, -9.0, 9.0)))", a=number(-1.0, 1.0)),
        ),
    ),
    said("x = ", tensor(*STATES)),
    one_of(
        "out = transform.forward(x, torch.Generator().manual_seed(0))",
        "out = transform.inverse(x)",
        "out = transform.log_abs_det(x, torch.Generator().manual_seed(0))",
        "out = transform.inverse(transform.forward(x, torch.Generator().manual_seed(0)))",
        "out = transforms.transform_from_dict(transform.to_dict()).inverse(x)",
    ),
)
WEIGHTS = one_of("'simple'", "'likelihood'", "'edm'", "'v'", "'min_snr'", "'none'", "lambda point, sde: point.t")
TIMES = one_of("'uniform'", "'low_discrepancy'", "'importance'", "'edm'", "'cauchy'", "'none'", "3")
losses: Cases = lines(
    said("model = ", exact_models),
    said("x = ", tensor(*STATES)),
    st.one_of(
        said(
            "out = ",
            call(
                "denoising_score_matching",
                one_of("model"),
                one_of("x"),
                weight=WEIGHTS,
                times=TIMES,
                generator=one_of("torch.Generator().manual_seed(0)", "3"),
                t=number(0.01, 0.9),
                noise=tensor(*STATES),
            ),
        ),
        said(
            "out = ",
            call(
                "held_out_loss",
                one_of("model"),
                one_of("x"),
                weight=WEIGHTS,
                times=TIMES,
                repeats=whole(1, 3),
                seed=whole(0, 3),
            ),
            ".mean",
        ),
        joined("out = ChainLoss.bound({chain})(model, x, torch.Generator().manual_seed(0))", chain=chains),
        joined(
            "out = Trainer(ScoreModel(net(), {sde}){more})(x)",
            sde=some_sdes,
            more=options(learning_rate=number(1e-5, 0.1), weight=WEIGHTS, times=TIMES),
        ),
        joined(
            "out = fit(ScoreModel(net(), {sde}), x, steps=2, calibrate=False, progress=False{more}).losses",
            sde=some_sdes,
            more=options(
                batch_size=whole(1, 5),
                learning_rate=number(1e-5, 0.1),
                ema_decay=number(0.0, 0.999),
                warmup=whole(0, 2),
                on_log=one_of("print", "3"),
                seed=whole(0, 5),
            ),
        ),
    ),
)
bounds: Cases = lines(
    said("model = ", exact_models),
    said("x = ", tensor(*STATES)),
    st.one_of(
        joined(
            "out = variational_bound(model, {chain}, x{more}).per_sample",
            chain=chains,
            more=options(indices=whole(1, 3), seed=whole(0, 5), variance=one_of("'large'", "'learned'", "3")),
        ),
        joined(
            "out = continuous_elbo(model, {sde}, x{more}).per_sample",
            sde=sdes,
            more=options(
                samples=whole(1, 4),
                seed=whole(0, 5),
                decoder=one_of("GaussianDecoder()", "LevelsDecoder(256, -9.0, 9.0)", "3"),
            ),
        ),
        joined(
            "out = log_likelihood(model, x, solver='heun'{more}).values",
            more=options(steps=whole(1, 5), probes=whole(1, 2), draws=whole(1, 3), seed=whole(0, 5)),
        ),
    ),
)
on_chains: Cases = lines(
    said("chain = ", chains),
    st.one_of(
        joined(
            "out = chain.ancestral({more}).law()",
            more=options(steps=whole(1, 5), variance=one_of("'large'", "'none'")).map(
                lambda text: text.removeprefix(", ")
            ),
        ),
        joined("out = chain.ddim({eta}).affine_map()", eta=number(0.0, 1.0)),
        joined("out = chain.posterior(data_like((3, 2)), data_like((3, 2)), {i})", i=whole(0, 4)),
        joined("out = chain.perturb(data_like((3, 2)), {i}, data_like((3, 2)))", i=whole(0, 4)),
        joined("out = chain.strided({n}).sde().log_snr(torch.tensor(0.9))", n=whole(1, 5)),
    ),
)
metrics_of: Cases = lines(
    said("x = ", tensor("(3, 2)", "(9, 2)", "(5, 3)")),
    said("y = ", tensor("(3, 2)", "(9, 2)", "(5, 3)")),
    st.one_of(
        said(
            "out = ",
            call("metrics.sliced_wasserstein", one_of("x"), one_of("y"), projections=whole(1, 9), seed=whole(0, 5)),
        ),
        one_of("out = metrics.energy_distance(x, y)", "out = metrics.frechet_distance(x, y)"),
        said("out = ", call("metrics.mmd", one_of("x"), one_of("y"), bandwidth=number(0.1, 2.0))),
        said(
            "out = ",
            call("metrics.two_sample_test", one_of("x"), one_of("y"), permutations=whole(1, 9), seed=whole(0, 5)),
        ),
    ),
)
guidance_of: Cases = lines(
    said("model = ", exact_models),
    st.one_of(
        said(
            "guided_model = ",
            call(
                "guided",
                one_of("model"),
                number(0.0, 5.0),
                rescale=number(0.0, 1.0),
                interval=one_of("(0.1, 5.0)", "(5.0, 0.1)", "3"),
                weak=one_of("model", "3"),
            ),
        ),
        joined("guided_model = product([model, model], [{a}, {b}])", a=number(-1.0, 2.0), b=number(-1.0, 2.0)),
        joined(
            "guided_model = map_prediction(model, guidance.{clip})",
            clip=one_of("Clamp()", "DynamicThreshold()", "Clamp(1.0, -1.0)", "DynamicThreshold(2.0)"),
        ),
        joined("guided_model = tilted(model, lambda x, t: -x.square().sum(1), scale={scale})", scale=number(0.0, 2.0)),
    ),
    one_of(
        "out = sample(guided_model, (3, 2), solver='ddim', steps=3, seed=0)",
        "out = sample(guided_model, 3, solver='ancestral', steps=2, seed=0)",
    ),
)
paths: Cases = lines(
    said("model = ", exact_models),
    said(
        "table = ",
        st.one_of(
            chains,
            joined(
                "build_table(model.sde, solvers.{name}(), steps={n})",
                name=one_of("ancestral", "euler_maruyama", "ddim", "heun"),
                n=whole(1, 5),
            ),
        ),
    ),
    joined("path = forward_path(table, {x}, seed={seed})", x=tensor(*STATES), seed=whole(0, 5)),
    one_of("out = path_log_weight(model, path, table)"),
)
densities: Cases = lines(
    said("sde = ", some_sdes),
    joined(
        "start = lambda x: torch.exp(-0.5 * (x / {std}).square().sum(1)) / ({std} * 2.5066282746)", std=number(0.3, 1.5)
    ),
    joined(
        "out = evolve_density(sde, start, [({low}, 9.0, {cells})], torch.tensor([{a}, {b}]).double(){more}).values",
        low=number(-12.0, -6.0),
        cells=whole(20, 90),
        a=number(0.05, 0.2),
        b=number(0.2, 0.4),
        more=options(steps=whole(1, 5), tolerance=number(1e-3, 0.1), walls=one_of("True", "False", "3")),
    ),
)
measurements: Cases = lines(
    said("model = ", exact_models),
    said(
        "operator = ",
        one_of(
            "guidance.Mask(torch.tensor([True, False]))",
            "torch.eye(2)",
            "torch.zeros(1, 2)",
            "torch.ones(3, 2)",
            "lambda x: x.square()",
            "3",
            "guidance.Linear(lambda x: x[:, :1])",
        ),
    ),
    said("y = ", tensor("(2,)", "(1,)", "(3,)")),
    joined(
        "out = sample(posterior(model, operator, y, noise_std={std}, event=(2,){more}), (3, 2), steps=2, seed=0)",
        std=number(0.0, 1.0),
        more=options(method=one_of("'mmps'", "'pigdm'", "'tmpd'", "'dps'", "'diffpir'", "'ddnm'", "'ddrm'", "'none'")),
    ),
)
steppers: Cases = lines(
    joined(
        "stepper = Stepper(build_table(VPSDE(), solvers.{name}(), steps={n}){more})",
        name=one_of(*NAMES),
        n=whole(1, 5),
        more=options(predicts=one_of("'data'", "'v'", "'velocity'", "'none'"), seed=whole(0, 5), sde=some_sdes),
    ),
    said("x = stepper.start(", tensor(*STATES), ")"),
    one_of(
        "out = [stepper(x, -x).nan_to_num() for at in stepper]",
        "out = stepper(x, x)",
        "out = [stepper(x, None) for at in stepper]",
    ),
)
LIBRARY: Mapping[str, Cases] = {
    "diffusions": diffusions,
    "grids": on_grids,
    "sampling": sampling,
    "there and back": there_and_back,
    "transforms": transforms,
    "losses": losses,
    "bounds": bounds,
    "chains": on_chains,
    "metrics": metrics_of,
    "guidance": guidance_of,
    "paths": paths,
    "densities": densities,
    "measurements": measurements,
    "steppers": steppers,
}

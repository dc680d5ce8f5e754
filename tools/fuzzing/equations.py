"""Cases of other equations: linear and nonlinear SDEs, learned schedules, clouds, paths of least action, Picard."""

from __future__ import annotations

from collections.abc import Mapping

from fuzzing.values import ODD, Cases, call, joined, lines, number, one_of, options, said, some_sdes, tensor, whole

NUMBERS = one_of(
    "(0.5, 2.0)", "(1.0, 1.0)", "(0.0, 1.0)", "(1e-9, 1e9)", "(-1.0, 2.0)", "(nan, 1.0)", "()", "3.0", "'a'"
)
MATRIX = one_of(
    "torch.tensor([[-0.5, 0.4], [-0.4, -0.5]])",
    "-0.5 * torch.eye(2)",
    "torch.zeros(2, 2)",
    "torch.eye(2)",
    "torch.full((2, 2), nan)",
    "-1e9 * torch.eye(2)",
    "torch.zeros(2, 3)",
    "[[1.0]]",
    "None",
)
SOLVER = one_of(
    "'ancestral'", "'ddim'", "'dpmpp_2m'", "'heun'", "'euler_maruyama'", "solvers.splitting()", "'edm'", "3"
)
linears: Cases = lines(
    said(
        "sde = ",
        one_of(
            "GroupedSDE.with_rates((0.5, 2.0))",
            "GroupedSDE.with_rates((1.0, 1.0), t_min=1e-3)",
            "MatrixSDE(torch.tensor([[-0.5, 0.4], [-0.4, -0.5]]))",
        )
        | call("GroupedSDE.with_rates", NUMBERS, t_min=number(1e-6, 0.1))
        | call("MatrixSDE", MATRIX, Q=MATRIX)
        | call("GroupedSDE.blurring", one_of("(1, 2)", "(1, 2, 2)", "(0,)", "2", "()"), blur=number(0.0, 8.0)),
    ),
    said("model = LinearModel(net(), sde", options(predicts=one_of("'noise'", "'data'", "'v'", "3")), ")"),
    said("x = ", tensor("(3, 2)")),
    joined(
        "out = sample(model, (3, 2), solver=build_blocks(sde, {solver}{more}), seed=0)",
        solver=SOLVER,
        more=options(steps=whole(1, 6)),
    )
    | one_of(
        "out = linear_elbo(model, x.float(), samples=2).per_sample",
        "out = fit(model, x, steps=1, batch_size=2, progress=False).losses",
        "out = model(x, 0.5).data",
        "out = sde.at(0.4).covariance",
    ),
)
nonlinears: Cases = lines(
    joined(
        "sde = type('Drifts', (SDE,), {{'drift': lambda s, x, t: {drift}, {noise}}})(t_max={end})",
        drift=one_of("x - x**3", "-x", "x * nan", "0"),
        noise=one_of("'diffusion': lambda s, t: 0.5 + 0 * t", "'diffusion_at': lambda s, x, t: 0.5 + 0.1 * x"),
        end=number(0.1, 2.0),
    ),
    said("x = ", tensor("(4, 2)")),
    one_of("model = SDEModel(net(), sde)", "model = SDEModel(net(), sde, baseline='none')")
    | said("model = SDEModel(net(), sde, prior=", one_of("'simulate'", "'gaussian'", "'a'", *ODD), ")"),
    one_of(
        "out = fit(model, x, steps=1, batch_size=2, objective=losses.SimulatedLoss(steps=3), progress=False).losses",
        "out = fit(model, x, steps=1, batch_size=2, objective='implicit', progress=False).losses",
        "out = ConditionedSDE.to_point(VPSDE(), x[0], 0.9).drift(x, 0.5)",
        "out = ConditionedSDE.to_box(VPSDE(), -1.0, 1.0, 0.9).drift(x, 0.5)",
    ),
)
schedules: Cases = lines(
    said("sde = LearnedSchedule(", whole(1, 6), "")
    .flatmap(lambda text: options(low=number(-15, 0), high=number(1, 15), t_min=number(1e-6, 0.1)).map(text.__add__))
    .map(lambda text: f"{text})"),
    said("x = ", tensor("(4, 2)")),
    one_of(
        "out = fit(ScoreModel(net(), sde), x, steps=2, batch_size=2, calibrate=False, progress=False).losses",
        "out = sde.time(sde.log_snr(torch.tensor([0.2, 0.7])))",
        "out = sde.tabulated().log_snr(0.5)",
        "out = sample(ScoreModel(net(), sde), (3, 2), steps=3, seed=0)",
    ),
)
clouds: Cases = lines(
    said("x = ", tensor("(2, 4, 3)", "(1, 2, 3)", "(2, 1, 3)", "(3, 4, 5)")),
    said("places = ", call("transforms.RelativePlaces", coordinates=whole(1, 4), features=whole(0, 3))),
    one_of(
        "out = places.inverse(places.forward(x))",
        "out = data.lennard_jones_energy(x)",
        "out = data.bonded(x, torch.zeros(x.shape[:2], dtype=torch.long))",
    )
    | said(
        "out = ", call("data.lennard_jones", whole(0, 3), whole(2, 4), temperature=number(0.05, 3), sweeps=one_of("2"))
    )
    | said("out = ", call("data.molecules", whole(0, 3), sweeps=one_of("1", "0", "'a'"))),
)
actions: Cases = lines(
    said("sde = ", some_sdes),
    said("path = ", tensor("(5, 2, 2)", "(4, 3, 1)", "(1, 2, 2)")),
    said("times = torch.linspace(0.1, ", number(0.2, 0.9), ", len(path))"),
    said(
        "out = ",
        call("onsager_machlup", one_of("sde"), one_of("path"), one_of("times"), rule=one_of("'ito'", "'a'", "3")),
    )
    | said(
        "out = ",
        call("most_probable_path", one_of("sde"), one_of("path[0]"), one_of("path[-1]"), one_of("times")),
    ),
)
picards: Cases = lines(
    said(
        "solver = ",
        call(
            "Picard", one_of("'ddim'", "'dpmpp_2m'", "'heun'", "'a'", "3"), window=whole(1, 6), tolerance=number(0, 0.1)
        ),
    ),
    one_of(
        "model = GaussianModel(sde=VPSDE(), mean=torch.zeros(2), covariance=torch.eye(2))",
        "model = ScoreModel(net(), VPSDE())",
    ),
    joined(
        "out = sample(model, (3, 2), solver=solver, seed=0{more})",
        more=options(steps=whole(1, 6), final=one_of("'mean'", "'sample'")),
    ),
)
EQUATIONS: Mapping[str, Cases] = {
    "linear SDEs": linears,
    "nonlinear SDEs": nonlinears,
    "learned schedules": schedules,
    "clouds": clouds,
    "least actions": actions,
    "parallel in time": picards,
}

"""Strategies of cases: a few lines of Python each, of which the last one may set ``out``, what must not be NaN."""

from __future__ import annotations

from collections.abc import Mapping

import any_file
from hypothesis import strategies as st

from fuzzing.values import (
    Text,
    call,
    chains,
    exact_models,
    grids,
    number,
    one_of,
    options,
    rarely,
    sdes,
    some_sdes,
    tensor,
    whole,
)
from scoresde.solvers import SOLVERS

Case = tuple[str, ...]
Cases = st.SearchStrategy[Case]

NAMES = sorted(set(SOLVERS) - {"probability_flow"})


def lines(*parts: Text) -> Cases:
    """Draw the lines of a case."""
    return st.tuples(*parts)


def said(before: str, part: Text, after: str = "") -> Text:
    """Draw a line with a drawn part."""
    return part.map(lambda text: f"{before}{text}{after}")


def joined(pattern: str, **parts: Text) -> Text:
    """Draw a line from a pattern with named parts."""
    return st.fixed_dictionaries(parts).map(lambda given: pattern.format_map(given))


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
        said(
            "out = ",
            call(
                "encode",
                one_of("model"),
                one_of("x"),
                solver=one_of("'ddim'", "'heun'", "'ancestral'"),
                steps=whole(1, 5),
            ),
        ),
        said(
            "out = ",
            call(
                "decode",
                one_of("model"),
                one_of("x"),
                solver=one_of("'ddim'", "'heun'", "'ancestral'"),
                steps=whole(1, 5),
            ),
        ),
        said("out = ", call("denoise", one_of("model"), one_of("x"), number(0.01, 0.9))),
        said(
            "out = ",
            call("langevin", one_of("model"), one_of("3"), number(0.1, 0.9), steps=whole(1, 5), seed=whole(0, 5)),
        ),
        said("out = ", call("interpolate", one_of("model"), one_of("x"), one_of("x"), whole(1, 4))),
        said(
            "out = ", call("edit", one_of("model"), one_of("x"), number(0.1, 0.9), steps=whole(1, 4), seed=whole(0, 5))
        ),
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
VALUES = one_of(
    "0",
    "-1.0",
    "0.5",
    "1e300",
    "1e308",
    "nan",
    "inf",
    "None",
    "True",
    "'a'",
    "[]",
    "{}",
    "[0.5, 0.5]",
    "10**400",
    "'\\x1b[31m'",
)
ROW = ("'at'", "'state'", "'anchor'", "'noise'", "'anchor_noise'", "'increment'", "'restart'", "'spread'")
PLACE = st.one_of(
    one_of(
        "('name',)",
        "('prediction',)",
        "('rows',)",
        "('start',)",
        "('start', 'sigma')",
        "('start', 'alpha')",
        "('end', 't')",
        "('prior_std',)",
    ),
    one_of("('lift',)", "('lift', 0)", "('order',)", "('order', 'strong')", "('format',)", "('more',)"),
    joined("('rows', {k}, {name})", k=one_of("0", "1"), name=one_of(*ROW)),
    joined(
        "('rows', {k}, {name}, {place})",
        k=one_of("0", "1"),
        name=one_of(*ROW),
        place=one_of("0", "1", "'t'", "'alpha'", "'sigma'", "'power'", "'shape'"),
    ),
)
tables: Cases = lines(
    st.one_of(
        joined(
            "text = table_with(solvers.{name}(), {place}, {value})",
            name=one_of("ddim", "ancestral", "dpmpp_2m_sde", "seeds_2", "unipc"),
            place=PLACE,
            value=VALUES,
        ),
        joined("text = build_table(VPSDE(), solvers.heun(), steps=2).to_json()[:{n}]", n=whole(0, 900)),
        one_of(
            "text = '[' * 100_000",
            "text = '{}'",
            "text = 'null'",
            "text = '{\"format\": 1}'",
            "text = 3",
            "text = b'{}'",
        ),
    ),
    one_of("table = Tableau.from_json(text)"),
    one_of(
        "out = sample(ScoreModel(net(), VPSDE(), predicts='data'), (3, 2), solver=table, seed=0)",
        "out = table.law()",
        "text = (str(table), table._repr_html_(), repr(table), table.to_json())",
    ),
)
PARTS = one_of("'model'", "'sde'", "'network'", "'transform'", "'moments'", "'tables'")
FIELDS = one_of(
    "'sde'",
    "'kind'",
    "'config'",
    "'network'",
    "'transform'",
    "'shift'",
    "'scale'",
    "'features'",
    "'width'",
    "'depth'",
    "'predicts'",
    "'version'",
    "'parameterization'",
    "'sigma_data'",
    "'beta_max'",
    "'t_min'",
    "'dropout'",
    "0",
)
checkpoints: Cases = lines(
    one_of("saved('c')"),
    st.one_of(
        joined("alter('c', {part}, ({a},), {value})", part=PARTS, a=FIELDS, value=VALUES),
        joined("alter('c', {part}, ({a}, {b}), {value})", part=PARTS, a=FIELDS, b=FIELDS, value=VALUES),
        joined("alter('c', {part}, ({a}, {b}, {c}), {value})", part=PARTS, a=FIELDS, b=FIELDS, c=FIELDS, value=VALUES),
        joined("cut('c', {k}, {share})", k=st.integers(0, 5).map(str), share=st.floats(0.0, 0.99).map(repr)),
        joined(
            "flip('c', {k}, {place}, {mask})",
            k=st.integers(0, 5).map(str),
            place=st.floats(0.0, 1.0).map(repr),
            mask=st.integers(1, 255).map(str),
        ),
    ),
    one_of("model = ScoreModel.load('c')"),
    one_of("out = sample(model, 2, solver='ddim', steps=2, seed=0)"),
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
WORDS = st.one_of(
    joined(
        "'--solver', {x}",
        x=one_of(
            "'ddim:2'", "'heun:1'", "'heun:0'", "'none'", "'ddim:99999999999999999999'", "'t.json'", "''", "'ddim:2@3'"
        ),
    ),
    joined("'--n', {x}", x=one_of("'2'", "'0'", "'-1'", "'1e3'", "'x'", "'9223372036854775808'")),
    joined("'--final', {x}", x=one_of("'sample'", "'mean'", "'x'")),
    joined("'--seed', {x}", x=one_of("'0'", "'-1'", "'18446744073709551616'", "'1.5'")),
    joined("'--label', {x}", x=one_of("'0'", "''", "'\\u0444'")),
    joined("'--chunk-size', {x}", x=one_of("'1'", "'0'", "'99'")),
    joined("'--out', {x}", x=one_of("'x.npy'", "'x.npz'", "'x.txt'", "'.'", "'c'", "''", "'deep/x.npy'", "'c/x.npy'")),
    joined("'--guidance', {x}", x=one_of("'1'", "'nan'", "'x'")),
    one_of("'--help'", "'--debug'", "'--nothing'", "'x'"),
)
commands: Cases = lines(
    one_of("saved('c')"),
    st.one_of(
        said(
            "run('sample', '--checkpoint', 'c', '--out', 'y.npy', '--solver', 'ddim:2', '--n', '2', ",
            st.lists(WORDS, max_size=3).map(", ".join),
            ")",
        ),
        joined("run('describe', {x})", x=one_of("'c'", "'nothing'", "'.'", "'c/manifest.json'", "''")),
        joined(
            "run('train', '--data', {x}, '--steps', {n}, '--batch-size', {b}, '--out', 'r')",
            x=one_of("'moons'", "'mons'", "'c'", "''", "'x.npy'"),
            n=one_of("'1'", "'0'", "'-1'", "'x'"),
            b=one_of("'2'", "'0'", "'9223372036854775808'"),
        ),
    ),
)


@st.composite
def files(draw: st.DrawFn) -> Case:
    """Draw a data file, whole or spoilt, and a reader."""
    ending = draw(st.sampled_from(any_file.ENDINGS))
    array = draw(any_file.arrays())
    tensors = {"x": array}
    if ending.lower() in (".npz", ".pt", ".pth", ".safetensors") and draw(st.booleans()) and len(array):
        tensors = {"samples": array, "labels": draw(any_file.columns(len(array)))}
    try:
        content = any_file.serialise(ending.lower(), tensors)
    except Exception:  # what a format cannot hold is no file
        content = b""
    content = any_file.spoil(content, any_file.sometimes(draw, st.just("whole"), st.sampled_from(any_file.SPOILT)))
    name = f"file{ending}"
    read = draw(
        st.sampled_from(
            (
                f"open_data({name!r}).load()[0][torch.arange(1)]",
                f"open_data({name!r}).transform()",
                f"arrays_from_file({name!r})",
                f"arrays_from_file({name!r}, 'samples', missing=True)",
                f"labels_from_file({name!r})",
                f"labels_from_file({name!r}, 'labels')",
            )
        )
    )
    return f"put({name!r}, {content!r})", read


CASES: Mapping[str, Cases] = {
    "diffusions": diffusions,
    "grids": on_grids,
    "sampling": sampling,
    "there and back": there_and_back,
    "transforms": transforms,
    "losses": losses,
    "bounds": bounds,
    "chains": on_chains,
    "tables": tables,
    "checkpoints": checkpoints,
    "files": files(),
    "metrics": metrics_of,
    "guidance": guidance_of,
    "commands": commands,
}

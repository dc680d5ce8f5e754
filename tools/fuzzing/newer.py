"""Cases of networks, latents, data sets, posteriors' samplers, searches for tables, chains' numbers and logs."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from fuzzing.values import Cases, call, chains, joined, lines, number, one_of, options, said, some_sdes, tensor, whole

PICTURES, SERIES, CLOUDS = tensor("(2, 1, 8, 8)", "(2, 1, 4, 4)"), tensor("(3, 1, 8)"), tensor("(2, 3, 2)", "(2, 1, 2)")
FEW = whole(1, 3)
networks: Cases = lines(
    said(
        "network = ",
        st.one_of(
            call(
                "nn.DiT", whole(1, 2), width=one_of("8", "4", "7"), depth=FEW, heads=FEW, patch=FEW, classes=whole(1, 3)
            ),
            call("nn.MagnitudeUNet", whole(1, 2), width=one_of("4", "3"), multipliers=one_of("(1,)", "(1, 2)", "()")),
            call("nn.UNet", whole(1, 2), width=one_of("8", "3"), multipliers=one_of("(1,)", "(1, 2)"), dims=FEW),
            call("nn.EGNN", whole(1, 3), width=one_of("4"), depth=FEW, features=whole(0, 2), classes=whole(1, 3)),
            call("nn.MLP", one_of("(1, 8, 8)", "2", "(3, 2)", "0"), width=whole(1, 9), depth=whole(0, 2)),
        ),
    ),
    said("x = ", st.one_of(PICTURES, SERIES, CLOUDS)),
    one_of(
        # A call says what its network does; samplers, bounds and trainers look.
        "out = ScoreModel(network, VPSDE(), predicts='data')(x, 0.5).data.nan_to_num()",
        "out = sample(ScoreModel(network, VPSDE(), predicts='data'), x_init=x, solver='ddim', steps=2)",
        "out = nn.count(network, x.shape[1:])",
        "out = log_likelihood(ScoreModel(network, VPSDE(), predicts='v'), x, solver='heun', steps=1, probes=1).values",
    ),
)
latents: Cases = lines(
    joined(
        "coder = nn.Autoencoder(1, {codes}, dims=1, width=4{more})",
        codes=whole(1, 3),
        more=options(
            multipliers=one_of("(1,)", "(1, 1)"), variational=one_of("True", "False", "3"), std=number(0.1, 2.0)
        ),
    ),
    said("x = ", SERIES),
    one_of(
        "model = ScoreModel(nn.MLP((2, 8), width=4), VPSDE(), transform=Latent(coder))",
        "model = ScoreModel(nn.MLP((2, 4), width=4), VPSDE(), predicts='data', transform=Latent.standardise(coder, x))",
        "model = ScoreModel(net(), VPSDE(), transform=Latent(EncoderDecoder(lambda x: x[:, 0, :2], lambda z: -z)))",
    ),
    one_of(
        "out = model.transform.encode(x, seed=0)",
        "out = latent_elbo(model, x, samples=2, seed=0).per_sample",
        "out = sample(model, (2, 2, 8), solver='ddim', steps=2, seed=0)",
        "out = fit(model, x, steps=1, batch_size=2, calibrate=False, progress=False).losses",
        "out = encode(model, x, solver='heun', steps=1)",
    ),
)
sets: Cases = lines(
    said("x = ", tensor("(5, 2)")),
    said(
        "data = ",
        one_of(
            "[{'x': row, 'label': 0} for row in x]",
            "[(row, 1) for row in x]",
            "[row for row in x]",
            "torch.utils.data.TensorDataset(x)",
            "torch.utils.data.DataLoader(x, batch_size=2)",
            "iter([x])",
            "[x[:2], x[2:]]",
            "x.tolist()",
            "np.asarray(x)",
            "3",
            "'x'",
            "[]",
        ),
    ),
    joined(
        "out = fit(ScoreModel(net(), VPSDE()), data, steps=2, calibrate=False, progress=False{more}).losses",
        more=options(
            batch_size=whole(1, 6),
            unpack=one_of("lambda item: item[0]", "lambda item: 3", "3"),
            augment=one_of("transforms.RandomFlip()", "lambda x, g: x[:1]", "lambda x, g: x * nan", "3"),
            transform=one_of("Affine()", "Affine(1.0, 2.0)", "Logit()", "3"),
            held_out=one_of("x", "x[:1]", "x[:0]", "data"),
            accumulate=whole(1, 3),
            sigma_rel=one_of("0.1", "(0.05, 0.1)", "9.0", "()"),
            uncertainty=one_of("True", "3"),
            moments=one_of("Moments.of(x)", "3"),
            decay=one_of("'linear'", "'constant'", "[]"),
            optimizer=one_of("lambda p: torch.optim.SGD(p, lr=0.1)", "3", "int"),
            autocast=one_of("torch.bfloat16", "torch.float64", "'bf16'"),
        ),
    ),
)
POSTERIOR = st.one_of(
    call("SplitGibbs"),
    call("DAPS"),
    call("Replacement"),
    call("TwistedSMC"),
    one_of("posterior", "'dps'", "3", "None"),
)
posteriors: Cases = lines(
    said("model = GaussianModel(sde=", some_sdes, ", mean=torch.zeros(2), covariance=torch.eye(2))"),
    said("y = ", tensor("(1,)", "(2,)")),
    joined(
        "out = sample_posterior(model, {a}, y, noise_std={std}, n={n}, steps={steps}, seed=0, method={method}).x",
        a=one_of("torch.ones(1, 2)", "torch.eye(2)", "torch.tensor([True, False])", "lambda x: x.square()", "3"),
        std=number(0.05, 1.0),
        n=whole(1, 4),
        steps=whole(1, 4),
        method=POSTERIOR,
    ),
)
searches: Cases = lines(
    said("model = GaussianModel(sde=", some_sdes, ", mean=torch.zeros(2), covariance=torch.eye(2))"),
    joined(
        "out = tune(model, {steps}, start={start}, samples={n}, iterations=1, keep=False{more}).table.law()",
        steps=whole(1, 4),
        start=one_of("'flow_abm'", "'ddim'", "'ancestral'", "'heun'", "3"),
        n=whole(1, 8),
        more=options(
            parts=one_of("('knots',)", "('weights',)", "()", "'knots'", "3"),
            method=one_of("'adam'", "'dynamic'", "'none'"),
            radius=number(0.0, 1.0),
            held_out=whole(1, 8),
            event=one_of("(2,)", "(3,)", "2", "(0,)"),
            tolerance=number(1e-5, 0.1),
        ),
    ),
)
chain_losses: Cases = lines(
    said("chain = ", chains),
    said("x = ", tensor("(3, 2)")),
    joined(
        "loss = ChainLoss.{kind}(chain{more})",
        kind=one_of("simple", "bound", "hybrid"),
        more=options(indices=one_of("losses.ImportanceIndices(len(chain))", "losses.ImportanceIndices(3)", "3")),
    ),
    # A loss says what its network does, also where data of 1e30 are more than float32 holds; what trains names it.
    one_of(
        "out = loss(ScoreModel(net(), chain.sde()), x, torch.Generator().manual_seed(0)).nan_to_num()",
        "out = loss(ScoreModel(net(), VPSDE()), x, index=0, noise=x).nan_to_num()",
        "out = fit(ScoreModel(net(), chain.sde()), x, steps=1, objective=loss, calibrate=False, progress=False).losses",
    ),
)
RECORD = one_of(
    '{"step": 1, "loss": 0.5}',
    '{"step": 1}',
    '{"step": "a", "loss": 1}',
    '{"step": 1, "loss": "a"}',
    '{"step": 1, "loss": NaN}',
    '{"step": 1, "loss": 1e999}',
    '{"step": 1, "loss": 0.5, "held_out_loss": []}',
    '{"step": 1, "loss": 0.5, "log_snr": [1], "loss_by_log_snr": [1, 2]}',
    '{"step": 1, "loss": 0.5, "log_snr": 3, "loss_by_log_snr": 3}',
    "{}",
    "[]",
    "3",
    "",
    "\x00",
    "[" * 500,
    '{"step": 1e400, "loss": 1}',
)
logs: Cases = lines(
    st.lists(RECORD, min_size=1, max_size=3).map(
        lambda records: f"put('log.jsonl', {chr(10).join(records).encode()!r})"
    ),
    one_of("log = plots.read_log('log.jsonl')", "log = plots.read_log('.')"),
    one_of("figure = plots.training(log)"),
    one_of("out = plots.save(figure, 'f.png')"),
)
NEWER: Mapping[str, Cases] = {
    "networks": networks,
    "latents": latents,
    "sets": sets,
    "posterior samplers": posteriors,
    "searches": searches,
    "chain losses": chain_losses,
    "logs": logs,
}

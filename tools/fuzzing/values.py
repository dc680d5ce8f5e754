"""Strategies of values, as text: usual ones, and now and then one that is odd."""

from __future__ import annotations

from hypothesis import strategies as st

Text = st.SearchStrategy[str]
Case = tuple[str, ...]
Cases = st.SearchStrategy[Case]

ODD = ("0", "-1.0", "nan", "inf", "-inf", "1e300", "1e-320", "10**400", "2**63", "True", "None", "'a'", "[1.0]", "()")
ODD_TENSORS = (
    "None",
    "3",
    "[[1.0, 2.0]]",
    "torch.zeros(())",
    "torch.zeros(0, 2)",
    "torch.zeros(3, 2).long()",
    "torch.zeros(3, 2, dtype=torch.complex64)",
    "torch.full((3, 2), nan)",
    "torch.full((3, 2), 1e30)",
    "torch.zeros(3, 2).to_sparse()",
    "torch.zeros(3, 2, device='meta')",
    "torch.zeros(3, 2).to(torch.float8_e4m3fn)",
    "torch.zeros(3, 2).expand(2, 3, 2)",
    "np.zeros((3, 2))",
)


def rarely(usual: Text, odd: Text, share: int = 16) -> Text:
    """Draw from the usual ones, and in one case of ``share`` from the odd ones."""
    return st.integers(0, share - 1).flatmap(lambda k: odd if k == share - 1 else usual)


def one_of(*choices: str) -> Text:
    """Draw one of these texts."""
    return st.sampled_from(choices)


def number(low: float, high: float) -> Text:
    """Draw a number of an interval, or an odd value."""
    return rarely(st.floats(low, high).map(repr), one_of(*ODD))


def whole(low: int, high: int) -> Text:
    """Draw an integer of an interval, or an odd value."""
    return rarely(st.integers(low, high).map(str), one_of(*ODD))


def options(**given: Text) -> Text:
    """Draw keyword arguments, each there or not: ", a=1, b=2" or less."""
    each = [
        st.booleans().flatmap(lambda yes, n=n, s=s: s.map(lambda v: f", {n}={v}") if yes else st.just(""))
        for n, s in given.items()
    ]
    return st.tuples(*each).map("".join)


def call(name: str, *positional: Text, **given: Text) -> Text:
    """Draw a call of a function with these arguments and some of these options."""
    return st.tuples(st.tuples(*positional), options(**given)).map(
        lambda parts: f"{name}({', '.join(parts[0])}{parts[1] if parts[0] else parts[1].removeprefix(', ')})"
    )


def lines(*parts: Text) -> Cases:
    """Draw the lines of a case."""
    return st.tuples(*parts)


def said(before: str, part: Text, after: str = "") -> Text:
    """Draw a line with a drawn part."""
    return part.map(lambda text: f"{before}{text}{after}")


def joined(pattern: str, **parts: Text) -> Text:
    """Draw a line from a pattern with named parts."""
    return st.fixed_dictionaries(parts).map(lambda given: pattern.format_map(given))


def tensor(*shapes: str) -> Text:
    """Draw data of one of these shapes, of some scale and type, or odd."""
    shape = one_of(*shapes)
    scale = rarely(one_of("1.0", "0.1", "3.0"), one_of("1e-30", "1e6", "1e30", "1e200", "0.0"), 8)
    kind = rarely(one_of("torch.float64", "torch.float32"), one_of("torch.float16", "torch.bfloat16"), 6)
    usual = st.tuples(shape, scale, kind).map(lambda p: f"data_like({p[0]}, {p[1]}, dtype={p[2]})")
    return rarely(usual, one_of(*ODD_TENSORS))


sdes: Text = st.one_of(
    call(
        "VPSDE", beta_min=number(0.0, 1.0), beta_max=number(1.0, 40.0), t_min=number(1e-6, 0.01), t_max=number(0.1, 2)
    ),
    call("SubVPSDE", beta_min=number(0.0, 1.0), beta_max=number(1.0, 40.0), t_min=number(1e-6, 0.01)),
    call("VESDE", sigma_min=number(1e-3, 0.1), sigma_max=number(1.0, 100.0), t_min=number(1e-6, 0.01)),
    call("EDMSDE", sigma_min=number(1e-4, 0.1), sigma_max=number(1.0, 100.0)),
    call("CosineVPSDE", t_min=number(1e-6, 0.01), t_max=number(0.1, 1.0)),
    call("RectifiedFlow", t_min=number(1e-6, 0.01), t_max=number(0.1, 1.0)),
    call("DDPM.linear(9, rule='exact').sde"),
)
some_sdes: Text = one_of("VPSDE()", "SubVPSDE()", "VESDE()", "EDMSDE()", "CosineVPSDE()", "RectifiedFlow()")
exact_models: Text = st.one_of(
    some_sdes.map(lambda s: f"GaussianModel(sde={s}, mean=torch.tensor([0.5, -1.0]), covariance=torch.eye(2))"),
    st.tuples(some_sdes, number(0.01, 2.0)).map(
        lambda p: f"GaussianMixtureModel(sde={p[0]}, weights=torch.ones(2), means=torch.eye(2), std={p[1]})"
    ),
    st.tuples(
        some_sdes, tensor("(2,)"), one_of("torch.ones(2)", "torch.zeros(2)", "-torch.eye(2)", "1e30 * torch.eye(2)")
    ).map(lambda p: f"GaussianModel(sde={p[0]}, mean={p[1]}, covariance={p[2]})"),
    some_sdes.map(lambda s: f"ScoreModel(net(), {s}, predicts='data')"),
)
grids: Text = st.one_of(
    call("grids.uniform", power=number(0.2, 8.0)),
    call("grids.karras", rho=number(0.5, 12.0)),
    call("grids.log_snr", width=number(0.1, 9.0)),
    call("grids.rectified", power=number(0.2, 6.0)),
    call("grids.diffused", power=number(0.2, 6.0)),
    one_of("grids.even()", "grids.curve([0.9, 0.1], [0.0, 1.0])", "torch.tensor([0.9, 0.5, 0.1])", "[0.9, 0.1]", "3"),
)
chains: Text = st.one_of(
    call("DDPM.linear", whole(1, 12), rule=one_of("'exact'", "'song'", "3")),
    call("DDPM.cosine", whole(1, 12)),
    call(
        "DDPM.from_betas",
        one_of("torch.full((5,), 0.1)", "torch.full((3,), 1e-300).double()", "torch.ones(3)", "[0.1]"),
    ),
    call("SMLD.geometric", whole(1, 12), sigma_min=number(1e-3, 0.1), sigma_max=number(1.0, 100.0)),
    st.tuples(some_sdes, whole(1, 9)).map(lambda p: f"DDPM.from_sde({p[0]}, {p[1]})"),
)

"""Cases of what reads files: tables, checkpoints, data, and the command line."""

from __future__ import annotations

from collections.abc import Mapping

import any_file
from hypothesis import strategies as st

from fuzzing.values import (
    Case,
    Cases,
    joined,
    lines,
    one_of,
    said,
    whole,
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


READERS: Mapping[str, Cases] = {
    "tables": tables,
    "checkpoints": checkpoints,
    "files": files(),
    "commands": commands,
}

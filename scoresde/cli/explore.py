"""``scoresde explore``: a page on which samplers run, and are bent and broken, on exact targets or on a model.

The page is one file, ``explorer.html``, made from the sources in ``explorer/``; it needs no network. Its tables are
those of ``Tableau.to_json``, built and run in the browser. A small network of vectors goes into the page with its
weights; any other model stays here: the page asks this process for data predictions, over a port of this machine alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import webbrowser
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
import tyro
from torch import Tensor

from scoresde.cli.options import Int, Work, find_device, is_interactive
from scoresde.cli.presets import DATA, SDES
from scoresde.cli.run_folder import RunFolder, check_file, open_run
from scoresde.cli.threads import choose_threads, use_threads
from scoresde.diffusions.levels import RectifiedFlow
from scoresde.errors.kinds import ConfigError, ScoreSDEError
from scoresde.errors.values import check_integer, check_number
from scoresde.nn.mlp import MLP
from scoresde.noise import stream
from scoresde.transforms.base import forward_parts

__all__ = ["Explore", "make_page"]

HOST = "127.0.0.1"
PLACE = '<script type="application/json" id="checkpoint">'
POINTS = 300  # of the data beneath a network's particles
LARGEST_BODY = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Explore(Work):
    """Open a page on which samplers run in the browser: on targets with exact scores, or on a trained model.

    Choose a diffusion, a solver, a grid and steps, and see particles, their density, errors and the table itself;
    change a number of it and watch the order break. The page speaks to this machine alone. Ctrl-C ends it.

    Args:
        checkpoint: folder of a run, or of a saved model, to explore; without it there are exact targets alone.
        label: the class to draw, of a model with class labels; by default all in turn.
        port: of the page on this machine; 0 takes a free one.
        out: write the page to a file and end, without serving it. It opens in any browser. A name that ends in .json
            takes the network alone, which the page opens with "open a network".
    """

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(optional)")] = None
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS", help_behavior_hint="(optional)")] = None
    port: Int = 0
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None

    def run(self) -> int:
        """Serve the page, or write it."""
        check_integer(self.port, "port", 0, 65535)
        if self.out is not None:
            check_file("out", self.out)
        run = None if self.checkpoint is None else open_run(self.checkpoint, find_device(self.device))
        if run is None and self.label is not None:
            raise ConfigError("--label names a class of a model; pass --checkpoint too", parameter="label")
        served = None if run is None else Served(run, self.label)
        if self.out is not None:
            self.out.write_text(self._written(served, alone=self.out.suffix == ".json"), encoding="utf-8")
            print(f"wrote {self.out}")
            return 0
        threads = 1 if run is None else choose_threads(self.threads, run.model.net)
        with use_threads(threads), _bind(self.port, served) as server:
            address = f"http://{HOST}:{server.server_address[1]}/"
            print(f"the explorer is at {address}; Ctrl-C ends it", flush=True)
            if is_interactive():
                webbrowser.open(address)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        return 0

    def _written(self, served: Served | None, alone: bool) -> str:
        """Return the page, or its model's network alone."""
        if served is not None and served.network is None:
            raise ConfigError(
                "--out: the page holds an MLP of one or two numbers that is told nothing but the noise level, and "
                f"{self.checkpoint} is none",
                parameter="out",
                cure="leave --out away, and this process serves the model",
            )
        if not alone:
            return make_page(served)
        if served is None or served.network is None:
            raise ConfigError(
                f"--out {self.out} would hold a network, and none is given",
                parameter="out",
                cure="pass --checkpoint too, or a name that ends in .html for the page",
            )
        return json.dumps(served.network | {"sde": served.describe()["sde"]})


class Served:
    """A model for the page: what it says of itself, and its data predictions."""

    def __init__(self, run: RunFolder, label: str | None = None) -> None:
        self.run, self.label = run, label
        run.make_labels(1, label)  # an unknown class is refused before anything is served
        if run.features:
            raise ConfigError(
                f"{run.folder} is told a vector of conditions, which the explorer has no field for; sample it with "
                "scoresde sample"
            )

    @cached_property
    def network(self) -> dict[str, object] | None:
        """The network as the page runs it; None where it cannot."""
        model, net = self.run.model, self.run.model.net
        kind = model.parameterization.name
        # Under the rectified flow the velocity is the same at equal log-SNR, whatever the scale.
        straight = ("velocity",) if type(model.trained_sde) is RectifiedFlow else ()
        known = {"noise", "data", "v", "score", "edm", *straight}
        if type(net) is not MLP or net.kinds or net.event_shape not in ((1,), (2,)):
            return None
        if kind not in known or model.condition_on != "log_snr" or model.variance != "fixed":
            return None
        weights = {name: {"shape": list(w.shape), "values": _encode(w)} for name, w in net.state_dict().items()}
        document: dict[str, object] = {
            "name": self.run.folder.name,
            "predicts": kind,
            "sigma_data": model.parameterization.sigma_data,
            "width": net.width,
            "depth": net.depth,
            "dim": net.size,
            "weights": weights,
        }
        if self.run.data is not None and self.run.data in DATA:
            points = torch.from_numpy(np.asarray(DATA[self.run.data].held_out()[:POINTS]))
            document["points"] = _encode(next(forward_parts(model.transform, [points], stream(0))))
        return document

    def describe(self) -> dict[str, object]:
        """Return what the page is told; ``served.ts`` has the fields."""
        trained = self.run.model.sde
        about: dict[str, object] = {
            "name": self.run.folder.name,
            "sde": next((name for name, entry in SDES.items() if entry.build() == trained), None),
            "shape": list(self.run.event),
        }
        return about | ({} if self.network is None else {"network": self.network})

    def predict(self, values: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return the data predictions at x = alpha x_0 + sigma z, flat and float64, of flat states.

        The model's own point has the same log-SNR, as far as its diffusion goes; x is scaled to it.
        """
        model, event = self.run.model, self.run.event
        size = math.prod(event)
        check_number(alpha, "alpha", 0.0)
        check_number(sigma, "sigma", 0.0, open_low=True)
        if len(values) == 0 or len(values) % size:
            raise ConfigError(f"the model takes samples of {size} numbers, got {len(values)} numbers")
        sde = model.sde
        log_snr = -math.inf if alpha == 0 else 2 * (math.log(alpha) - math.log(sigma))
        ends = [float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min)]
        point = sde.at(sde.time(torch.tensor(min(max(log_snr, ends[0]), ends[1]), dtype=torch.float64, device="cpu")))
        scale = float(point.r) / math.hypot(alpha, sigma)
        place = next(model.parameters())
        x = (scale * values).reshape(-1, *event).to(place.device, place.dtype)
        cond = self.run.make_labels(len(x), self.label)
        told = None if cond is None else {name: value.to(place.device) for name, value in cond.items()}
        with torch.no_grad():
            found: Tensor = model(x, float(point.t), cond=told).data
        return found.double().cpu().flatten()


def make_page(served: Served | None = None) -> str:
    """Return the page, with a model in it where one is given."""
    page = resources.files("scoresde.cli").joinpath("explorer.html").read_text(encoding="utf-8")
    if served is None:
        return page
    before, place, after = page.partition(PLACE)
    # "<" cannot end the element that holds it.
    told = json.dumps(served.describe()).replace("<", "\\u003c")
    return before + place + told + after[after.index("</script>") :]


def _encode(values: Tensor) -> str:
    return base64.b64encode(values.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def _bind(port: int, served: Served | None) -> ThreadingHTTPServer:
    page = make_page(served).encode()

    class Handler(BaseHTTPRequestHandler):
        """GET the page; POST states, get the data predictions."""

        def do_GET(self) -> None:
            """Answer with the page."""
            if not self._is_ours():
                return None
            if self.path != "/":
                return self._answer(404, b"no such page")
            return self._answer(200, page, "text/html; charset=utf-8")

        def do_POST(self) -> None:
            """Answer with data predictions."""
            if not self._is_ours():
                return None
            asked, length = urlsplit(self.path), self.headers.get("Content-Length", "")
            if served is None or asked.path != "/data" or not length.isdigit() or int(length) > LARGEST_BODY:
                return self._answer(404, b"there is no model here, or too much was sent")
            body = self.rfile.read(int(length))
            try:
                query = parse_qs(asked.query)
                alpha, sigma = float(query["alpha"][0]), float(query["sigma"][0])
                values = torch.from_numpy(np.frombuffer(body, "<f8").astype(np.float64))
                found = served.predict(values, alpha, sigma)
            except (ScoreSDEError, KeyError, ValueError) as error:
                return self._answer(400, f"the model cannot say that: {error}".encode())
            return self._answer(200, found.numpy().astype("<f8").tobytes(), "application/octet-stream")

        def _is_ours(self) -> bool:
            """Refuse what another site's page asks under a name of its own."""
            ours = self.headers.get("Host", "").rpartition(":")[0] in (HOST, "localhost")
            if not ours:
                self._answer(403, b"this page is for this machine alone")
            return ours

        def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: object) -> None:
            """Say nothing of each call."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        text = f"port {port} cannot be used: {error.strerror}"
        raise ConfigError(text, parameter="port", got=port, cure="take --port 0, which finds a free one") from error

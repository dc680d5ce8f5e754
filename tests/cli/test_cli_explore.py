"""``scoresde explore``: what it writes, what it serves and to whom, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
from cli_helpers import Folders, main, refused, start

from scoresde import ScoreModel
from scoresde.cli.explore import Served, make_page
from scoresde.cli.run_folder import open_run


def told(page: str) -> object:
    """Return the document of a page's checkpoint."""
    return json.loads(page.split('<script type="application/json" id="checkpoint">')[1].split("</script>")[0])


def test_the_page_is_written_with_a_model_in_it(
    runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", "--out", str(tmp_path / "plain.html")]) == 0
    assert (tmp_path / "plain.html").read_text(encoding="utf-8") == make_page()
    assert told(make_page()) is None
    assert main(["explore", "--checkpoint", str(runs[0]), "--out", str(tmp_path / "own.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'own.html'}"
    document = told((tmp_path / "own.html").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    assert {key: document[key] for key in ("name", "sde", "shape")} == {"name": "points", "sde": "vp", "shape": [2]}
    assert document["network"]["weights"]["skip.weight"]["shape"] == [1, 128]
    assert len(document["network"]["points"]) > 1000
    assert main(["explore", "--checkpoint", str(runs[0]), "--out", str(tmp_path / "own.json")]) == 0
    assert json.loads((tmp_path / "own.json").read_text(encoding="utf-8")) == document["network"] | {"sde": "vp"}


def test_a_name_cannot_end_the_element_that_holds_it(runs: Folders) -> None:
    run = dataclasses.replace(open_run(runs[0], torch.device("cpu")), folder=Path("a<script>b<!--"))
    page = make_page(Served(run))
    document = told(page)
    assert isinstance(document, dict)
    assert document["name"] == "a<script>b<!--"
    assert page.count("<!--") == make_page().count("<!--")


def test_what_it_cannot_do_is_said(runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = str(runs[2])
    assert "the page holds an MLP" in refused(capsys, ["explore", "--checkpoint", digits, "--out", "x.html"])
    assert "pass --checkpoint too" in refused(capsys, ["explore", "--label", "3"])
    assert "pass --checkpoint too" in refused(capsys, ["explore", "--out", str(tmp_path / "none.json")])
    assert "the page holds an MLP" in refused(capsys, ["explore", "--checkpoint", digits, "--out", "x.json"])
    assert list(tmp_path.iterdir()) == []
    assert "trained without labels" in refused(capsys, ["explore", "--checkpoint", str(runs[0]), "--label", "3"])
    assert "eleven" in refused(capsys, ["explore", "--checkpoint", digits, "--label", "eleven"])
    assert "port" in refused(capsys, ["explore", "--port", "70000"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} cannot be used" in refused(capsys, ["explore", "--port", str(port)])


@pytest.mark.parametrize("index", [0, 1])
def test_a_model_is_asked_at_its_own_point_of_the_same_log_snr(runs: Folders, index: int) -> None:
    """The data predicted depend on neither scale; beyond the ends of its diffusion it answers as at them."""
    served = Served(open_run(runs[index], torch.device("cpu")))
    sde, x = served.run.model.sde, torch.linspace(-1, 1, 8, dtype=torch.float64)
    point = sde.at(torch.tensor(0.4, dtype=torch.float64))
    alpha, sigma = float(point.alpha), float(point.sigma)
    with torch.no_grad():
        expected = served.run.model((alpha * x).reshape(4, 2).float(), 0.4).data.flatten()
    for scale in (1.0, 3.0):
        found = served.predict(scale * alpha * x, scale * alpha, scale * sigma)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
    last = sde.at(torch.tensor(sde.t_max, dtype=torch.float64))
    ends = [served.predict(x * float(last.r), float(last.alpha), float(last.sigma)), served.predict(x, 0.0, 1.0)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)
    first = sde.at(torch.tensor(sde.t_min, dtype=torch.float64))
    share = float(first.sigma / first.alpha)
    ends = [served.predict(x * math.hypot(1.0, s), 1.0, s) for s in (share, 1e-3 * share)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)


@pytest.fixture
def address(runs: Folders, tmp_path: Path) -> Iterator[str]:
    """The address of a page of class-conditional digits, served by a process of its own, which Ctrl-C ends."""
    process = start(["explore", "--checkpoint", str(runs[2]), "--label", "3"], tmp_path)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found, line
    yield found[0]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_model_is_asked_over_this_machine_alone(runs: Folders, address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        document = told(answer.read().decode())
    assert isinstance(document, dict)
    assert (document["shape"], "network" in document) == ([1, 8, 8], False)
    x = torch.linspace(-1, 1, 128, dtype=torch.float64)
    body = struct.pack("<128d", *x.tolist())
    with urllib.request.urlopen(f"{address}data?t=0.5&alpha=0.6&sigma=0.8", body) as answer:
        found = torch.tensor(struct.unpack("<128d", answer.read()), dtype=torch.float64)
    model = ScoreModel.load(runs[2])
    log_snr = torch.tensor(2 * math.log(0.6 / 0.8), dtype=torch.float64)
    t = float(model.sde.time(log_snr))
    with torch.no_grad():
        expected = model(x.reshape(2, 1, 8, 8).float(), t, cond={"label": torch.full((2,), 3)}).data
    torch.testing.assert_close(found.float(), expected.flatten(), rtol=1e-4, atol=1e-4)

    port = int(address.rsplit(":", 1)[1].strip("/"))

    def ask(method: str, path: str, body: bytes = b"", host: str = "127.0.0.1") -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request(method, path, body, {"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    assert ask("GET", "/etc/passwd") == (404, "no such page")
    assert ask("GET", "/", host="evil.example")[0] == 403
    assert ask("POST", "/data?alpha=1&sigma=1", body, host="evil.example")[0] == 403
    for query, given, part in [
        ("alpha=1&sigma=1", body[:40], "samples of 64 numbers, got 5"),
        ("alpha=1&sigma=1", body[:41], "cannot say that"),
        ("alpha=1&sigma=0", body, "sigma"),
        ("alpha=nan&sigma=1", body, "alpha"),
        ("alpha=1", body, "sigma"),
    ]:
        code, text = ask("POST", f"/data?{query}", given)
        assert (code, part in text) == (400, True), text
    assert ask("POST", "/elsewhere", body)[0] == 404

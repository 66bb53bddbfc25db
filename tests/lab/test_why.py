"""The score's variance: closed forms against draws with exact gradients, and the command."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from minisoft.draws import Draws
from minisoft.kinds import make_kind
from minisoft.kinds.covariance import Covariance
from minisoft.kinds.multiplex import Multiplex
from minisoft.lab import why
from minisoft.soft import Hard

V, D, N = 7, 5, 20_000
LOGITS = 1.5 * torch.randn(V, generator=torch.Generator().manual_seed(1))
SURE = torch.tensor([5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
KINDS = {
    "hard": make_kind("hard", 0.3, 0.7),
    "soft": make_kind("soft", 0.3),
    "multiplex": make_kind("multiplex", 0.3, 0.8),
    "covariance": make_kind("covariance", 0.3, 0.8),
    "gumbel": make_kind("gumbel", 0.3),
    "top-k": make_kind("soft", 0.3, noise="logits", top_k=3),
    "fuzzy": make_kind("fuzzy", 0.3, 0.2),
}


class Model:
    """The part of a model that a kind needs."""

    config = SimpleNamespace(tie_word_embeddings=True)
    E = torch.randn(V, D, generator=torch.Generator().manual_seed(2))

    def embed(self, ids):
        return self.E[ids]

    def mix(self, p):
        return p @ self.E


def draws(n):
    return Draws(torch.arange(n), torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("logits", [LOGITS, SURE], ids=["hesitates", "sure"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_score_variance_is_that_of_exact_gradients(kind, logits):
    z = logits.expand(N, V).clone().requires_grad_()
    distribution = kind.distribution(Model(), None, z)
    action = distribution.sample(draws(N)).detach()
    (score,) = torch.autograd.grad(distribution.score(action, draws(N)).sum(), z)
    square = score.double().square().sum(-1)
    found = why.score_variance(kind, Model.E, logits[None]).item()
    assert abs(square.mean() - found) < 5 * square.std() / N**0.5 + 1e-5
    assert (score.mean(0).abs() < 5 * score.std(0) / N**0.5 + 1e-5).all()  # scores have mean 0


@pytest.mark.parametrize("name", ["soft", "hard", "covariance"])
def test_score_variance_in_E_is_that_of_exact_gradients(name):
    """E is the head of the logits and, of soft tokens, what is mixed."""
    kind, h = KINDS[name], torch.randn(D, generator=torch.Generator().manual_seed(5))
    squares, E = [], Model.E
    for i in range(3000):
        model = Model()
        model.E = E.clone().requires_grad_()
        one = Draws(torch.tensor([i]), torch.tensor([0]))
        distribution = kind.distribution(model, None, (model.E @ h)[None])
        action = distribution.sample(one).detach()
        (score,) = torch.autograd.grad(distribution.score(action, one).sum(), model.E)
        squares.append(score.double().square().sum())
    square, z = torch.stack(squares), (E @ h)[None]
    found = why.score_variance(kind, E, z) + why.through_mixture(kind, h[None], z)
    found = found.item() * h.square().sum().item()
    assert abs(square.mean() - found) < 5 * square.std() / 3000**0.5


def test_two_tokens_soft_score_has_two_d_over_gamma_squared_times_p_1_p_hards():
    """Of the difference of two logits; independent embeddings of many dimensions, tau 1."""
    d, gamma = 4096, 0.33
    E = torch.randn(2, d, generator=torch.Generator().manual_seed(3))
    sigma = gamma * E.square().mean().sqrt().item()
    for gap in (0.0, 1.0, 3.0):
        z, p = torch.tensor([[gap, 0.0]]), torch.tensor(gap).sigmoid().item()
        hard = why.score_variance(make_kind("hard", 1.0), E, z).item()
        soft = why.score_variance(make_kind("soft", sigma, 1.0), E, z).item()
        assert soft / hard == pytest.approx(2 * d / gamma**2 * p * (1 - p), rel=0.05)


def test_a_soft_score_where_one_token_has_all_of_p_is_not_rounding():
    """Against derivatives in float64 of p E, the differences written out."""
    z = torch.tensor([[30.0, 0.0, -1.0, 2.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    E, p = Model.E.double(), z.softmax(-1)[0]
    others = p[1:, None] * (E[1:] - E[0])  # E_0 - p E is minus their sum
    first = p[0] ** 2 * others.sum(0).square().sum()
    rest = (p[1:, None] * (E[1:] - E[0] - others.sum(0))).square().sum()
    expected = ((first + rest) / 0.3**2).item()
    found = why.score_variance(make_kind("soft", 0.3, 1.0), Model.E, z).item()
    assert expected < 1e-20 and found == pytest.approx(expected, rel=1e-6)


def case(variance, signal, advantage=1.0, length=1.0, measured=1.0, snr=1.0, mixture=0.0):
    one = {"snr": snr, "variance": measured, "variance_error": 0.1 * measured}
    return {
        "score_variance": {"all": variance},
        "signal": {"all": signal},
        "own_chains": {"score_variance": variance, "through_mixture": mixture},
        "measured": {
            **{"advantage_square": advantage, "cot_length": length},
            **{"E": one, "body": one},
        },
    }


def test_predictions_on_numbers_made_by_hand():
    rows = {
        "hard": case(0.5, 2.0, 3.0, 10.0, measured=4.0, snr=6.0),
        "soft": case(5.0, 4.0, 6.0, 20.0, measured=80.0, mixture=5.0),
        "fuzzy": case(0.0, 1e-9),
    }
    why.predict(rows)
    soft, fuzzy = rows["soft"], rows["fuzzy"]
    assert soft["predicted"] == pytest.approx({"E": 0.6, "body": 0.6})  # 6 x 0.5 / 5
    assert soft["linear"] == pytest.approx({"E": 1.2, "body": 1.2})  # its signal is twice hard's
    noise = {part: soft["noise"][part]["predicted"] for part in ("E", "body")}
    assert noise == pytest.approx({"E": 80.0, "body": 40.0})  # (10 or 5) / 0.5 x 6/3 x 20/10
    assert soft["noise"]["E"]["measured"] == 20.0
    assert soft["noise"]["E"]["relative_error"] == pytest.approx(0.1 * 2**0.5)
    assert rows["hard"]["noise"]["E"] == {"predicted": 1.0, "measured": 1.0, "relative_error": 0.0}
    nothing = {"E": None, "body": None}
    assert fuzzy["predicted"] == fuzzy["linear"] == nothing
    assert fuzzy["noise"]["E"]["predicted"] is None and fuzzy["noise"]["E"]["measured"] == 0.25


def test_displacement_of_known_noise():
    z = torch.tensor([[1.0, 0.0, *[-40.0] * 5]])
    p = torch.tensor(1.0).sigmoid().item()
    length = (Model.E[0] - Model.E[1]).square().sum().item()
    for name, expected in (
        ("hard", p * (1 - p)),
        ("multiplex", p * (1 - p) / 3),
        ("covariance", p * (1 - p) / 3),
        ("soft", 0.3**2 / length),
    ):
        found = why.displacement(Model(), make_kind(name, 0.3), z, draws(N), N).item()
        assert found == pytest.approx(expected, rel=0.05), name


def mean_input(kind, z):
    """E[input], for kinds that draw tokens exactly, else the mean over the same 64 draws."""
    if type(kind) in (Hard, Multiplex, Covariance):
        return (z / kind.tau).softmax(-1) @ Model.E
    action = kind.distribution(Model(), None, z.expand(64, V)).sample(draws(64))
    return kind.embed(Model(), action).mean(0)


@pytest.mark.parametrize("name", KINDS)
def test_linear_signal_is_the_slope_of_the_mean_input(name):
    kind = KINDS[name]
    found = why.linear_signal(Model(), kind, LOGITS[None], draws(64), 64).item()
    slope = torch.autograd.functional.jacobian(partial(mean_input, kind), LOGITS)
    assert found == pytest.approx(slope.square().sum().item(), rel=1e-3)


def test_the_command_predicts_and_measures(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(why, "BATCHES", "--prompts 2 --group 8 --batches 3 --device cpu")
    small = "--cot 60 --chains 4 --cases hard soft gumbel"
    out = tmp_path / "why.json"
    words = [*small.split(), "--gradients", str(tmp_path / "g"), "--out", str(out)]
    why.main(words)
    found = json.loads(out.read_text())
    rows = found["cases"]
    assert list(rows) == ["hard", "soft", "gumbel"] and 0 < found["hesitates"] < 1
    for part in ("E", "body"):
        hard, soft = rows["hard"], rows["soft"]
        assert hard["predicted"][part] == hard["linear"][part] == hard["measured"][part]["snr"]
        ratio = hard["score_variance"]["all"] / soft["score_variance"]["all"]
        assert soft["predicted"][part] == pytest.approx(hard["predicted"][part] * ratio)
    assert out.with_suffix(".png").stat().st_size > 1000
    assert out.with_suffix(".md").read_text().strip() in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "g").iterdir()}
    why.main(words)  # nothing is measured again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "g").iterdir()}
    with pytest.raises(SystemExit, match="hard.json: cot: expected 24, found 60; move the file"):
        why.main([*words, "--cot", "24"])
    with pytest.raises(SystemExit):
        why.main(["--gradients", str(tmp_path), "--cases", "soft"])


def test_formulas_alone(capsys):
    why.main(["--chains", "2", "--cot", "24", "--cases", "hard", "top-5"])
    text = capsys.readouterr().out
    assert "score variance" in text and "measured" not in text

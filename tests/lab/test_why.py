"""The score's variance: closed forms against draws with exact gradients, and the command."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import refuses, write_json
from small import Embedding

from minisoft.draws import Draws
from minisoft.kinds import make_kind
from minisoft.lab import command, why
from minisoft.lab.trainings import TRAININGS

V, D, N = 7, 5, 20_000
LOGITS = 1.5 * torch.randn(V, generator=torch.Generator().manual_seed(1))
SURE = torch.tensor([5.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
TAUS = {"hard": 0.7, "multiplex": 0.8, "covariance": 0.8, "fuzzy": 0.2}
KINDS = {name: make_kind(name, 0.3, TAUS.get(name)) for name in (*TAUS, "soft", "gumbel")}
KINDS["top-k"] = make_kind("soft", 0.3, noise="logits", top_k=3)
MODEL = Embedding(V, D, seed=2)
MODEL.config = SimpleNamespace(tie_word_embeddings=True)


def draws(n):
    return Draws(torch.arange(n), torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("logits", [LOGITS, SURE], ids=["hesitates", "sure"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_score_variance_is_that_of_exact_gradients(kind, logits):
    z = logits.expand(N, V).clone().requires_grad_()
    distribution = kind.distribution(MODEL, None, z)
    action = distribution.sample(draws(N)).detach()
    (score,) = torch.autograd.grad(distribution.surrogate(action, draws(N)).sum(), z)
    square = score.double().square().sum(-1)
    found = why.score_variance(kind, MODEL.E, logits[None]).item()
    assert abs(square.mean() - found) < 5 * square.std() / N**0.5 + 1e-5
    assert (score.mean(0).abs() < 5 * score.std(0) / N**0.5 + 1e-5).all()  # scores have mean 0


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
    E, p = MODEL.E.double(), z.softmax(-1)[0]
    others = p[1:, None] * (E[1:] - E[0])  # E_0 - p E is minus their sum
    first = p[0] ** 2 * others.sum(0).square().sum()
    rest = (p[1:, None] * (E[1:] - E[0] - others.sum(0))).square().sum()
    expected = ((first + rest) / 0.3**2).item()
    found = why.score_variance(make_kind("soft", 0.3, 1.0), MODEL.E, z).item()
    assert expected < 1e-20 and found == pytest.approx(expected, rel=1e-6)


def test_displacement_of_known_noise():
    z = torch.tensor([[1.0, 0.0, *[-40.0] * 5]])
    p = torch.tensor(1.0).sigmoid().item()
    length = (MODEL.E[0] - MODEL.E[1]).square().sum().item()
    of = {"hard": p * (1 - p), "multiplex": p * (1 - p) / 3, "covariance": p * (1 - p) / 3}
    for name, expected in {**of, "soft": 0.3**2 / length}.items():
        found = why.displacement(MODEL, make_kind(name, 0.3), z, draws(N), N).item()
        assert found == pytest.approx(expected, rel=0.05), name


def test_the_command(tmp_path, capsys):
    out = tmp_path / "why.json"
    why.main(["--chains", "2", "--cot", "24", "--out", str(out)])
    found, text = json.loads(out.read_text()), capsys.readouterr().out
    assert list(found["cases"]) == list(TRAININGS) and 0 < found["hesitates"] < 1
    variance = {name: row["score_variance"]["all"] for name, row in found["cases"].items()}
    assert variance["multiplex"] == pytest.approx(3 * variance["hard"])
    assert variance["hard"] < variance["top-5"]
    assert out.with_suffix(".md").read_text().strip() in text


def test_a_tool_writes_over_its_own_results_only(tmp_path):
    def check(path):
        command.check_written(path, lambda found: found["cases"])

    own, other, notes = (tmp_path / f"{name}.json" for name in ("own", "other", "notes"))
    write_json(own, {"cases": ["hard"]}), write_json(other, {"cells": ["hard"]})
    for path in (own, notes):
        path.with_suffix(".md").write_text("table")
    check(own), check(tmp_path / "new.json")
    refuses(other, other, by=check)
    refuses(notes, notes.with_suffix(".md"), by=check)
    for path in (tmp_path / "no/new.json", tmp_path / "own.md", tmp_path / "own"):
        refuses(path, "--out", by=check)

"""How much of a gradient is signal: statistics of vectors whose mean and noise are known, and the
command line."""

import json

import pytest
import torch
from runs import tiny_at
from small import small_model

from minisoft.lab import gradient

SMALL = "--batches 3 --prompts 2 --group 4 --cot 16".split()
THINKING = "--batches 3 --prompts 2 --group 8 --cot 60".split()  # long enough for right answers


def gram(vectors):
    return vectors.double() @ vectors.double().T


def known(seed, snr, batches=12, n=200):
    """Gradients (batches, n) with a mean of norm 2 and that signal-to-noise ratio."""
    draw = torch.Generator().manual_seed(seed)
    mean = torch.nn.functional.normalize(torch.randn(n, generator=draw), dim=0) * 2
    return mean + torch.randn(batches, n, generator=draw) * (4 / snr / n) ** 0.5


@pytest.mark.parametrize("snr", [0.05, 0.25, 2.0])
def test_snr_and_cosine_are_those_of_the_vectors_without_bias(snr):
    """And the errors are as large as the spread of 300 repetitions, or, at little signal, somewhat
    larger."""
    found = [gradient.signal(gram(known(seed, snr))) for seed in range(300)]
    # noise is orthogonal to all: many dimensions
    for name, exact in (("snr", snr), ("cosine", snr / (1 + snr))):
        values, errors = (torch.tensor([f[key] for f in found]) for key in (name, f"{name}_error"))
        assert abs(values.mean() - exact) < 4 * values.std() / 300**0.5
        assert values.std() < 0.3 * exact
        assert 0.9 < errors.square().mean().sqrt() / values.std() < 1.35


def test_signal_by_hand():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])  # inner products 4, 6, 0
    found = gradient.signal(gram(vectors))
    cosines, snrs = [4 / 5, 6 / 10, 0], [4 / (13 - 4), 6 / (14.5 - 6), 0]  # of two batches each
    expected = {"norm": 10**0.5, "cosine": sum(cosines) / 3, "snr": (10 / 3) / (10 - 10 / 3)}
    expected["variance"], variances = 10 - 10 / 3, [13 - 4, 14.5 - 6, 2.5]
    errors = {"cosine": cosines, "snr": snrs, "variance": variances}
    for name, without in ((f"{name}_error", of) for name, of in errors.items()):
        expected[name] = (2 / 3 * sum((x - sum(without) / 3) ** 2 for x in without)) ** 0.5
    assert found == pytest.approx(expected)
    same = gradient.signal(gram(torch.tensor([[1.0, 2.0, 2.0]] * 3)))
    assert (same["norm"], same["cosine"], same["cosine_error"]) == (3, 1, 0) and same["snr"] > 1e9
    assert set(gradient.signal(torch.zeros(3, 3).double()).values()) == {0.0}


def test_signals_are_of_the_sum_of_both_terms_and_of_both_parts_together():
    made = {("cot", "E"): known(0, 0.1), ("cot", "body"): known(1, 0.3, n=99)}
    made |= {("answer", "E"): known(2, 1.0), ("answer", "body"): known(3, 3.0, n=99)}
    found = gradient.signals([{key: made[key][i] for key in made} for i in range(12)])
    made |= {("both", part): made["cot", part] + made["answer", part] for part in ("E", "body")}
    for term in ("cot", "answer", "both"):
        made[term, "all"] = torch.cat((made[term, "E"], made[term, "body"]), 1)
    assert {(term, part) for term, parts in found.items() for part in parts} == set(made)
    for (term, part), vectors in made.items():
        assert found[term][part] == pytest.approx(gradient.signal(gram(vectors)), rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_taken_and_gone(tied):
    model = small_model(tied)
    last = list(model.parameters())[-1]
    model.E.grad, last.grad = torch.ones_like(model.E), torch.full_like(last, 3)
    found = gradient.take_gradient(model)
    assert found["E"].tolist() == [1.0] * model.E.numel()
    assert found["body"].unique().tolist() == [0.0, 3.0]
    assert len(found["body"]) == sum(p.numel() for p in model.parameters()) - model.E.numel()
    assert all(p.grad is None for p in model.parameters())


def test_the_command_measures(tmp_path):
    """On batches in which some answers are right."""
    gradient.main([*THINKING, "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [found[k] for k in ("batches", "prompts", "group")] == [3, 2, 8]
    assert [found[k] for k in ("tokens", "tau")] == ["soft", 0.5]
    assert found["sigma"] > 0
    assert 0 < found["informative"] <= 1 and 0 < found["reward"] < 100
    assert all(s["norm"] > 0 for parts in found["signal"].values() for s in parts.values())
    squares = {part: s["norm"] ** 2 for part, s in found["signal"]["both"].items()}
    assert squares["all"] == pytest.approx(squares["E"] + squares["body"])
    assert "| both   | all  | " in gradient.table(found)


def test_the_model_decides_what_the_flags_do_not(tmp_path):
    """Kind of noise, temperature and sigma of its training, from its minisoft.json."""
    trained = {"tokens": "soft", "noise": "logits", "top_k": 5, "tau": 0.7}
    folder = tiny_at(tmp_path / "model", {**trained, "gamma": 0.33, "sigma": 2.5})
    own = gradient.Measurement(gradient.read_flags(["--model", str(folder)])).policy.kind
    assert (type(own).__name__, own.tau, own.sigma, own.top_k) == ("TopLogitNoise", 0.7, 2.5, 5)
    flags = ["--model", str(folder), "--noise", "embedding", "--tau", "0.1"]
    other = gradient.Measurement(gradient.read_flags(flags)).policy.kind
    assert (type(other).__name__, other.tau) == ("Mixture", 0.1) and other.sigma < 0.1


BAD = "--group 1;--batches 2;--cot -1;--out no/such/folder/x.json;--device gpu;--gamma 0".split(";")
BAD = [(flags, f"{flags.split()[0]}: expected .*{flags.split()[1]}") for flags in BAD]
BAD_INPUT = """--model no/such/folder :: no/such/folder: expected
--data missing.jsonl :: missing.jsonl: expected
--data tiny-facts :: expected a problem with a free answer, found
--prompts 5000 :: prompts: expected .* 3000 .*, found 5000
--noise logits --top-k 180 :: --top-k: expected .* 179, found 180"""
BAD += [x.split(" :: ") for x in BAD_INPUT.splitlines()]


@pytest.mark.parametrize("flags, message", BAD)
def test_bad_input_is_one_line(flags, message, tmp_path):
    with pytest.raises(SystemExit, match=f"gradient: error: .*{message}") as stop:
        gradient.main([*SMALL, "--out", str(tmp_path / "found.json"), *flags.split()])
    assert "\n" not in stop.value.code and not list(tmp_path.iterdir())

"""train.py with research switches: what they change, what is written down, how a run goes on."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small import FORM, PROMPT, small_model
from small import gradient as take_gradient

from minisoft import engine, reinforce
from minisoft.io.checkpoint import WEIGHTS
from minisoft.kinds import make_kind
from minisoft.lab import variants
from minisoft.rollout import Decoding, Request

SMALL = "--prompts 2 --group 8 --cot 60 --validation 0 --test 0 --show-every 0 --device cpu"
SMALL = f"{SMALL} --seed 1 --lr 1e-4 --warmup 1 --max-grad-norm 1e9 --steps 2".split()
SWITCHES = {"whole": [], "cot": ["--terms", "cot"], "answer": ["--terms", "answer"]}
SWITCHES["frozen"] = ["--frozen", "E"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{variant: (RUN, metrics, weights)} after 2 steps."""
    found = {}
    for name, switches in SWITCHES.items():
        out = tmp_path_factory.mktemp("variants") / name
        variants.main([*switches, "--", *SMALL, "--out", str(out)])
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found[name] = out, metrics, load_file(out / "last" / "model.safetensors")
    return found


@pytest.mark.parametrize("name", SWITCHES)
def test_two_steps_move_every_parameter_but_a_frozen_one_and_switches_are_written(runs, name):
    out, metrics, weights = runs[name]
    before = load_file(WEIGHTS / "tiny" / "model.safetensors")
    for tensor, x in weights.items():
        stays = name == "frozen" and tensor == "model.embed_tokens.weight"
        assert torch.equal(x, before[tensor]) == stays and x.isfinite().all()
    assert [m["step"] for m in metrics] == [1, 2]
    assert all(m["grad_norm"] > 0 and m["replay_mismatch"] < 1e-4 for m in metrics)
    facts = dict([[word.removeprefix("--") for word in SWITCHES[name]]] if SWITCHES[name] else [])
    assert json.loads((out / "config.json").read_text())["variant"] == facts
    about = json.loads((out / "last" / "minisoft.json").read_text())
    assert {x: about[x] for x in ("terms", "frozen") if x in about} == facts


def test_variants_differ_in_the_gradient_and_terms_not_in_the_samples(runs):
    first = {name: metrics[0] for name, (_, metrics, _) in runs.items()}
    assert len({m["grad_norm"] for m in first.values()}) == len(SWITCHES)
    samples = {tuple(m[k] for k in ("reward", "cot_length", "entropy")) for m in first.values()}
    assert len(samples) == 1
    answer, whole, cot = (first[name]["grad_norm"] for name in ("answer", "whole", "cot"))
    assert answer < 0.5 * whole < cot


@pytest.mark.parametrize("name", ["hard", "soft", "hidden"])
def test_terms_are_the_parts_of_the_whole_gradient(name):
    """Of the definition's, which has them all; with rows without an advantage."""
    noise = {"hidden": "hidden"}.get(name, "embedding")
    model, kind = small_model(), make_kind("hard" if name == "hard" else "soft", 0.2, noise=noise)
    form = SimpleNamespace(**{**vars(FORM), "answer_ends": lambda ids: len(ids) == 2})
    requests = [Request(PROMPT, ("test", 0), range(24))]
    rollouts = engine.rollout(model, form, kind, requests, Decoding(3))
    advantages = [torch.randn(24, generator=torch.Generator().manual_seed(4))]
    advantages[0][5] = 0
    reinforce.backward(model, kind, rollouts, advantages, 1 / 24)
    whole = take_gradient(model)
    backward = partial(engine.backward, model, kind, rollouts, advantages, 1 / 24, micro_batch=7)
    parts = {}
    for term, roles in variants.TERMS.items():
        backward(terms=roles)
        parts[term] = take_gradient(model)
    close = {"rtol": 1e-4, "atol": 1e-5 * whole.abs().max().item()}
    torch.testing.assert_close(parts["both"], whole, **close)
    torch.testing.assert_close(parts["cot"] + parts["answer"], whole, **close)
    assert min(parts["cot"].norm(), parts["answer"].norm()) > 0.05 * whole.norm()


@pytest.mark.parametrize("switches, named", [([], "{}"), (["--terms", "answer"], "answer")])
def test_a_run_goes_on_with_its_own_switches_only(runs, switches, named):
    out, expected = runs["cot"][0], rf"^.*--resume: .*variant \(was .*cot.*now .*{named}.*\Z"
    with pytest.raises(SystemExit, match=expected):
        variants.main([*switches, "--", "--out", str(out), "--resume"])
    if switches:
        return
    variants.main(["--terms", "cot", "--", "--out", str(out), "--resume", "--steps", "3"])
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3 and last["grad_norm"] > 0


def test_the_definitions_have_no_switch_for_terms():
    with pytest.raises(SystemExit, match="--terms cot: expected no --plain"):
        variants.main(["--terms", "cot", "--", "--plain"])

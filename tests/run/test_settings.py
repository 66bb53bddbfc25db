"""One resolver of "a flag, else the model's minisoft.json, else the paper": each of its rules."""

import json
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import refuses

import train
from minisoft import kinds
from minisoft.data import PAPER_PROMPT
from minisoft.errors import InputError
from minisoft.io import state
from minisoft.run.settings import Flags, fill, resolve, resumed
from minisoft.soft import Kind

TRAINED = {"sigma": 0.7, "gamma": 0.1, "noise": "embedding"}
SCALE = 12.5**0.5  # rms of (3, 4)
SIGMAS = [({}, Flags(), 0.33 * SCALE), ({}, Flags(gamma=0.5), 0.5 * SCALE)]
SIGMAS += [({}, Flags(sigma=0.2), 0.2), (TRAINED, Flags(sigma=0.2), 0.2), (TRAINED, Flags(), 0.7)]
SIGMAS += [({"sigma": 0.66}, Flags(), 0.66)]  # without a word on noise and gamma
SIGMAS += [(TRAINED, Flags(gamma=0.2), 0.2 * SCALE)]
SIGMAS += [({**TRAINED, "noise": "hidden"}, Flags(noise="embedding"), 0.33 * SCALE)]


def test_sigma_is_the_flags_else_the_folders_else_gamma_times_the_scale_of_the_weights():
    E = torch.tensor([[3.0, 4.0]])
    norm, config = torch.nn.RMSNorm(2), SimpleNamespace(hidden_size=2, vocab_size=1)
    model = SimpleNamespace(E=E, W_d=E, model=SimpleNamespace(norm=norm), config=config)
    for folder, flags, expected in SIGMAS:
        settings = resolve(folder, flags, 128).for_model(model)
        assert settings.sigma == pytest.approx(expected), (folder, flags)
        assert settings.kind("soft").sigma == settings.sigma


HERE = {"noise": "logits", "top_k": 5, "gamma": 0.5, "tokens": "soft", "tau": 0.4}  # a training
NOISES = [({}, Flags(), "embedding", None), (HERE, Flags(), "logits", 5)]
NOISES += [(HERE, Flags(noise="logits"), "logits", None)]  # the folder's top_k is not asked for
NOISES += [(HERE, Flags(top_k=3), "logits", 3), (HERE, Flags(noise="embedding"), "embedding", None)]
NOISES += [({}, Flags(noise="logits", top_k=7), "logits", 7)]


@pytest.mark.parametrize("folder, flags, noise, top_k", NOISES)
def test_the_noise_is_where_the_flag_or_the_training_has_it(folder, flags, noise, top_k):
    settings = resolve(folder, flags, 128)
    assert (settings.noise, settings.top_k) == (noise, top_k)


RATES = [({}, Flags(), 0.33, 0.5, 0.0001), ({}, Flags(sigma=0.2), None, 0.5, 0.0001)]
RATES += [(HERE, Flags(), 0.5, 0.4, 1.0)]  # the kind it was trained with; top-k's tau for the other
RATES += [(HERE, Flags(noise="embedding"), 0.33, 0.5, 0.0001)]  # not the noise of the training
RATES += [(HERE, Flags(gamma=0.1, tau={"fuzzy": 0.2}), 0.1, 0.4, 0.2)]
RATES += [(HERE, Flags(top_k=3), 0.33, 1.0, 1.0), (HERE, Flags(tau={"soft": 0.6}), 0.5, 0.6, 1.0)]


@pytest.mark.parametrize("folder, flags, gamma, soft, fuzzy", RATES)
def test_gamma_and_tau_hold_where_the_noise_is_as_trained(folder, flags, gamma, soft, fuzzy):
    settings = resolve(folder, flags, 128)
    assert settings.gamma == gamma
    assert (settings.tau["soft"], settings.tau["fuzzy"]) == (soft, fuzzy)


def test_template_and_budget_are_the_flags_else_the_folders_else_the_papers(tmp_path):
    (tmp_path / "t").write_text("Q QUESTION A\n")
    folder = {"prompt": "X QUESTION Y", "defaults": {"cot": 80}}
    own = Flags(template=str(tmp_path / "t"), cot=7)
    found = [resolve(*of, 512) for of in (({}, Flags()), (folder, Flags()), (folder, own))]
    assert [of.template for of in found] == [PAPER_PROMPT, "X QUESTION Y", "Q QUESTION A"]
    assert [of.cot for of in found] == [512, 80, 7]


def test_what_does_not_go_together_is_one_line():
    alone = partial(resolve, {}, budget=512)
    refuses(Flags(top_k=5), "--top-k: expected noise on the logits, found 5", by=alone)
    refuses(Flags(template="nowhere"), "nowhere: expected a prompt file", by=alone)


def filled(folder, *flags, device="cpu"):
    args, _ = train.read_flags(flags)
    fill(args, folder, device)
    return args


def test_sixteen_bits_are_for_gpus():
    assert (filled({}).dtype, filled({}, device="cuda").dtype) == ("float32", "bfloat16")
    assert filled({}, "--dtype", "float32", device="cuda").dtype == "float32"


def test_how_much_is_trained_is_the_flags_else_the_folders_else_the_papers():
    args = filled({})
    assert (args.data, args.prompts, args.group, args.steps) == ("gsm8k", 2, 32, 4000)
    assert (args.lr, args.warmup, args.validate_every) == (6e-6, 20, 50)
    assert (args.cot, args.eval_cot) == (128, 512)
    args = filled({"defaults": {"steps": 60, "cot": 80, "lr": 1e-4}}, "--steps", "9")
    assert (args.steps, args.cot, args.eval_cot, args.lr) == (9, 80, 80, 1e-4)
    assert filled({}, "--cot", "512").eval_cot == 512
    assert filled({"defaults": {"cot": 80}}, "--cot", "40").eval_cot == 80


def test_a_learning_rate_by_kind_is_the_papers_for_a_kind_that_is_not_named():
    folder = {"defaults": {"lr": {"soft": 2e-4}}}
    assert filled(folder, "--tokens", "soft").lr == 2e-4
    assert filled(folder, "--tokens", "hard").lr == 6e-6
    assert filled(folder, "--lr", "1").lr == 1


RUN = {state.MARK: state.VERSION}


def go_on(flags):
    args, given = train.read_flags(flags)
    return resumed(args, given - train.RESUMED, given & train.RESUMED)


def test_a_run_goes_on_with_its_flags(tmp_path):
    args = filled({}, "--template", "t.txt", "--max-grad-norm", "0.5", "--cot", "40")
    config = {name: value for name, value in vars(args).items() if name not in ("out", "resume")}
    (tmp_path / "config.json").write_text(json.dumps(RUN | config))
    flags = ["--out", str(tmp_path), "--resume", "--steps", "9"]
    again = go_on(flags)
    assert (again.template, again.max_grad_norm, again.steps) == ("t.txt", 0.5, 9)
    assert again.eval_cot == 512


OTHERS = [({"lr": 1.0}, "--lr 2", "lr (was 1.0, now 2.0)")]
OTHERS += [({"advantage": "rloo"}, "--advantage grpo", "(was rloo, now grpo)")]
OTHERS += [({state.MARK: 0}, "", "found a config.json without minisoft_run 1")]
OTHERS += [({"data": "a", "saved": None}, "--data b", "data (was a, now b)")]


@pytest.mark.parametrize("config, flags, message", OTHERS)
def test_other_flags_than_the_runs_are_refused(tmp_path, config, flags, message):
    (tmp_path / "config.json").write_text(json.dumps(RUN | config))
    flags = ["--out", str(tmp_path), "--resume", *flags.split()]
    refuses(flags, "--resume: ", message, by=go_on)


def test_what_training_on_changes_is_said():
    trained = {**HERE, "sigma": 0.7}
    assert resolve(trained, Flags(), 128).changes("soft") == []
    assert resolve({}, Flags(), 128).changes("soft") == []
    found = replace(resolve(trained, Flags(gamma=0.1), 128), sigma=0.2).changes("soft")
    assert found == ["gamma 0.5 -> 0.1", "sigma 0.7 -> 0.2"]
    changes = resolve(trained, Flags(noise="embedding"), 128).changes("hard")
    assert changes[:2] == ["tokens soft -> hard", "noise logits -> embedding"]


MULTIPLEX = {"tokens": "multiplex", "width": 5}
GUMBEL = {"tokens": "gumbel", "width": 7, "top_p": 0.8}
# widths of multiplex, covariance and gumbel, and gumbel's top_p: a training's are its kind's only
OWN = [({}, {}, (3, 3, 5, 0.95)), (MULTIPLEX, {}, (5, 3, 5, 0.95)), (GUMBEL, {}, (3, 3, 7, 0.8))]
OWN += [(MULTIPLEX, {"width": 2}, (2, 2, 2, 0.95)), (GUMBEL, {"top_p": 0.5}, (3, 3, 7, 0.5))]


@pytest.mark.parametrize("folder, own, expected", OWN)
def test_width_and_top_p_are_the_flags_else_of_its_training_else_the_kinds(folder, own, expected):
    settings = resolve(folder, Flags(sigma=1.0, **own), 128)
    kinds = [settings.kind(name) for name in ("multiplex", "covariance", "gumbel")]
    assert (*(kind.width for kind in kinds), kinds[2].top_p) == expected


NOTHING = [
    ({"gamma": 0.5}, "multiplex"),
    ({"noise": "logits"}, "covariance"),
    ({"width": 2}, "soft"),
]
NOTHING += [({"sigma": 0.5}, "covariance and gumbel"), ({"top_p": 0.5}, "multiplex")]


@pytest.mark.parametrize("flag, names", NOTHING)
def test_a_flag_that_means_nothing_is_refused(flag, names):
    (name, value), flags, kinds = *flag.items(), Flags(**flag), names.split(" and ")
    message = f"--{name.replace('_', '-')}: expected without {names} tokens, "
    refuses(kinds, message, f"found {value!r}", by=flags.check)
    flags.check([*kinds, "soft", "hard", "gumbel"])


def test_noise_elsewhere_of_a_folder_does_not_concern_other_kinds():
    assert resolve(HERE, Flags(sigma=1.0), 128).kind("multiplex").width == 3


@dataclass(frozen=True)
class Spread(Kind):
    """Noise that is no mixture's."""

    tau: float
    sigma: float


def test_a_new_kind_with_sigma_has_its_flags_and_noise_on_the_embedding_only(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "spread", Spread)
    monkeypatch.setitem(kinds.TAU, "spread", 0.8)
    Flags(gamma=0.2, sigma=0.1).check(["spread"])
    assert resolve({}, Flags(sigma=0.1), 128).kind("spread") == Spread(0.8, 0.1)
    with pytest.raises(InputError, match="--noise: expected embedding for spread tokens"):
        resolve({}, Flags(noise="logits", sigma=0.1), 128).kind("spread")

"""eval.py --show: a look inside the chain of thought of one problem, as text and as a picture
(extra `plot`: matplotlib).  Dimensions: C CoT steps, d width, V vocabulary."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import torch

from minisoft.errors import InputError, expect
from minisoft.evaluation import SOFT, Setting, verified
from minisoft.io import datasets
from minisoft.io.atomic import replace_file
from minisoft.reinforce import encodings
from minisoft.reward import RIGHT
from minisoft.rollout import COT, Rollout
from minisoft.run.metrics import markdown
from minisoft.run.policy import Policy
from minisoft.run.subjects import MARK, find_all
from minisoft.run.world import World
from minisoft.soft import Hard, rms

COLORS = {  # Okabe and Ito's, which colour-blind people tell apart: of a kind in every picture
    "hard": "#0072B2",
    "soft": "#D55E00",
    "fuzzy": "#CC79A7",
    "multiplex": "#009E73",
    "covariance": "#56B4E9",
    "top-5": "#E69F00",
    "gumbel": "#000000",
    "base": "#999999",
}
TOP = 5  # tokens of a mixture that are named
PER_ROW, LEAST_TEXT = 24, 0.08  # steps in a row of the picture; a piece that text fits into
SHADES = (0.45, 0.25, 0.18, 0.12, 0.08, 0)  # of a mixture's tokens, the heaviest first, and others


@dataclass(frozen=True)
class Chain:
    """A chain of thought, its scored generation (`evaluation.describe`); length: a typical |E_v|.
    columns, of each step: the token that stands for it; of the mixture that was fed (of hard
    tokens: drawn from) the effective support, H(mix) in nats and the TOP heaviest tokens with their
    weights; H of the next token; the token nearest to the input, and its distance."""

    title: str
    setting: Setting
    kind: object
    generation: dict
    length: float
    columns: dict[str, list]


def show(args: Namespace, world: World, verifier) -> None:
    """Print and draw sample 0 of one problem, as an evaluation draws it.  Raises InputError,
    OSError."""
    if len(args.data or []) > 1 or world.size > 1:
        raise InputError("--show: expected one data set and one process, found more")
    subjects, chains = find_all(args), []
    problems = datasets.load_problems((args.data or subjects[0].default_data())[0])
    number, last = args.show, len(problems) - 1
    expect(0 <= number <= last, "--show", f"a problem from 0 to {last}", number)
    for subject in subjects:
        subject.check([problems[number]], world)
    for subject in subjects:
        policy = subject.load(args, world.device)
        for setting in args.settings:
            policy, key = policy.of_kind(setting.kind), (args.seed[0], str(setting), number)
            request = policy.request(problems[number], key, range(1))
            rollouts = policy.rollout([request], setting.greedy, greedy_answer=True)
            numbered = [(number, problems[number])]
            ((generation,),) = policy.score(rollouts, numbered, verifier)
            title = f"{subject.label}, {setting}" if len(subjects) > 1 else str(setting)
            chains.append(look(policy, rollouts[0], setting, generation, title))
            print(as_text(chains[-1]))
        del policy  # and its model, before the next one is loaded
    try:
        save_picture(args.out, draw(chains))
        print(f"written: {args.out}")
    except ImportError as error:
        print(error)


@torch.no_grad()
def look(policy: Policy, record: Rollout, setting: Setting, generation: dict, title: str) -> Chain:
    """The CoT steps of a Rollout of one row, by one teacher-forced pass."""
    model, kind, decode = policy.model, policy.kind, policy.form.tokenizer.decode
    actions, thinking = record.taken(COT), record.role == COT
    logits = model.logits(encodings(model, kind, record)[thinking])  # (C, V)
    weights, ids = (logits / kind.tau).softmax(-1), None
    if not isinstance(kind, Hard):
        weights, ids = kind.weights(model, actions, logits)  # (C, m)
    weight, token = weights.topk(min(TOP, weights.shape[-1]))  # (C, TOP)
    token = token if ids is None else ids.gather(-1, token)
    inputs = kind.embed(model, actions).float()  # (C, d)
    distance, nearest = torch.cdist(inputs, model.E.float()).min(-1)  # (C,)

    def names(ids: torch.Tensor) -> list[str]:
        return [decode([i]) or f"<{i}>" for i in ids.tolist()]

    entropies, support, _ = record.measures[thinking].T.tolist()
    columns = {
        "fed as": names(record.ids[thinking]),
        "tokens": support,
        "H(mix)": torch.special.entr(weights).sum(-1).tolist(),
        "H": entropies,
        "nearest": names(nearest),
        "dist": distance.tolist(),
        "weights": [list(zip(names(t), w.tolist())) for t, w in zip(token, weight)],
    }
    length = rms(model.E) * model.config.hidden_size**0.5
    return Chain(title, setting, kind, generation, length, columns)


def as_text(chain: Chain) -> str:
    """A table with a row for each step, for the terminal."""
    g, rows = chain.generation, [["step", *chain.columns]]
    for number, (*values, mixture) in enumerate(zip(*chain.columns.values())):
        cells = [f"{x:.2f}" if isinstance(x, float) else repr(x) for x in values]
        weights = "  ".join(f"{token!r} {w:.3f}" for token, w in mixture if w >= 0.0005)
        rows.append([str(number), *cells, weights])
    return (
        f"\n{chain.title}, tau {chain.kind.tau:g}: {g['cot_tokens']} steps; distances beside a "
        f"typical |E_v| of {chain.length:.2f}\nquestion: {g['question']}\n"
        f"the input carries {g['support']:.2f} tokens (effective support 1 / sum p^2, mean; "
        f"{g['share_soft']:.0%} of steps above {SOFT}), its largest weight is "
        f"{g['largest_weight']:.3f}\n{markdown(rows)}\n"
        f"answer: {g['answer']}   gold: {g['gold']}   reward: {g['reward']}"
    )


def new_figure(width: float, height: float):
    """A matplotlib Figure, in inches.  Raises ImportError."""
    try:
        from matplotlib.figure import Figure  # here, since only pictures need it; Agg draws PNGs
    except ImportError as error:
        why = f"pictures need the extra `plot`: pip install matplotlib ({error})"
        raise ImportError(why) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    return figure


def save_picture(path: Path, figure) -> None:
    """A PNG with the mark that it is ours.  Raises OSError."""
    png = {"dpi": 160, "metadata": MARK, "format": "png"}
    replace_file(path, lambda new: figure.savefig(new, **png))


def draw(chains: list[Chain]):
    """A Figure of what each step of some chains was fed, from left to right: a bar is the mixture,
    its pieces tokens, hatched all others (of hard tokens what the token was drawn from, only that
    one coloured), below it the (shadow) token.  A chain longer than PER_ROW goes on below."""
    lengths = [len(chain.columns["fed as"]) for chain in chains]
    rows = [(chain, i) for chain, n in zip(chains, lengths) for i in range(0, n, PER_ROW)]
    figure = new_figure(12, 1.75 * len(rows) + 0.4)
    for (chain, start), axis in zip(rows, figure.subplots(len(rows), 1, squeeze=False)[:, 0]):
        bars = [*zip(chain.columns["fed as"], chain.columns["weights"])][start:]
        if start == 0:
            greedy, fed = chain.setting.greedy, "the bar's mixture of token embeddings"
            fed += "" if greedy else ", with noise"
            if isinstance(chain.kind, Hard):
                fed = f"the coloured token, {'the most likely' if greedy else 'drawn from the bar'}"
            axis.set_title(chain.title, loc="left", fontsize="medium", weight="bold")
            axis.set_title(f"input: {fed}", loc="right", fontsize="medium")
        for at, (token, mixture) in enumerate(bars[:PER_ROW]):
            _bar(axis, at, token, mixture, chain)
        _text(axis, -1, -0.13, "text:")
        if len(bars) <= PER_ROW:
            g = chain.generation
            _text(axis, len(bars), 0.6, f"→ {g['answer'].rstrip('}')}", weight="bold")
            _text(axis, len(bars), 0.4, "right" if verified(g) == RIGHT else "wrong")
        axis.set(ylim=(-0.22, 1), yticks=(0, 0.5, 1), xlim=(-1.5, PER_ROW + 0.5), xticks=())
        axis.set_ylabel("probability" if isinstance(chain.kind, Hard) else "weight")
        axis.spines[:].set_visible(False)
    question = fill(chains[0].generation["question"], 120)
    figure.suptitle(question, fontsize="large", style="italic", parse_math=False)
    return figure


def _bar(axis, at: int, fed: str, mixture: list, chain: Chain) -> None:
    """One mixture as a stacked bar, the heaviest token at the bottom, and the text below it."""
    rest = max(0.0, 1 - sum(weight for _, weight in mixture))
    drawn = fed if fed in dict(mixture) else ""  # "" stands for all others
    color, bottom = COLORS.get(chain.setting.kind, COLORS["base"]), 0.0
    for (token, weight), shade in zip([*mixture, ("", rest)], SHADES):
        if isinstance(chain.kind, Hard):
            shade = SHADES[0] if token == drawn else 0
        face = (color, shade) if shade else "1"
        style = {"facecolor": face, "edgecolor": ".3", "linewidth": 0.5}
        axis.bar(at, weight, 0.86, bottom, hatch="" if token else "....", **style)
        if token and weight >= LEAST_TEXT:
            _text(axis, at, bottom + weight / 2, token, room=weight)
        bottom += weight
    _text(axis, at, -0.13, fed, weight="bold")


def _text(axis, x: float, y: float, token: str, room: float = 1, **style) -> None:
    """A token without its space, small enough for its place; white space as a sign."""
    text = token.strip() or {"\n": "⏎"}.get(token, "␣")
    size = min(9.5, 46 / len(text), 70 * room)
    style = {"ha": "center", "va": "center", "parse_math": False, **style}
    axis.text(x, y, text, fontsize=size, **style)

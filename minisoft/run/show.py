"""eval.py --show: a look inside the chain of thought of one problem, as text and as a picture that
is readable in black and white (extra `plot`: matplotlib).

Dimensions: C CoT steps, d width, V vocabulary.
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import fill

import torch

from minisoft.errors import InputError, expect
from minisoft.evaluation import SOFT, Setting, verified
from minisoft.io import checkpoint, datasets
from minisoft.io.atomic import replace_file
from minisoft.reinforce import encodings
from minisoft.reward import RIGHT
from minisoft.rollout import COT, Rollout
from minisoft.run.policy import Policy
from minisoft.run.subjects import MARK, Subject
from minisoft.run.world import World
from minisoft.soft import Hard, rms

TOP = 5  # tokens of a mixture that are named
PER_ROW, LEAST_TEXT = 24, 0.08  # steps in a row of the picture; a piece that text fits into
SHADES = (".87", ".7", ".8", ".6", ".75", "1")  # of a mixture's tokens, the heaviest first


@dataclass(frozen=True)
class Step:
    """One CoT step.

    mixture: the TOP heaviest tokens and their weights in what was fed (of hard tokens: in what the
    token was drawn from), and the entropy of all these weights in nats; nearest: the token whose
    embedding is nearest to the input, and how far that is; entropy of the next token, support and
    largest: see `soft.measure`.
    """

    shadow: str
    mixture: list[tuple[str, float]]
    mixture_entropy: float
    nearest: str
    distance: float
    entropy: float
    support: float
    largest: float


@dataclass(frozen=True)
class Chain:
    """A chain of thought: its scored generation (`evaluation.describe`), whether its kind of token
    mixes embeddings, at which tau, and the typical length |E_v| of an embedding."""

    setting: Setting
    generation: dict
    mixes: bool
    tau: float
    length: float
    steps: list[Step]


def show(args: Namespace, world: World, verifier) -> None:
    """Print and draw the CoT of one problem, sample 0: the one that an evaluation draws.  Raises
    InputError, OSError."""
    if len(args.model) > 1 or len(args.data or []) > 1 or world.size > 1:
        raise InputError("--show: expected one model, one data set and one process, found more")
    subject = Subject.find(args.model[0])
    problems = datasets.load_problems((args.data or subject.default_data())[0])
    number, last = args.show, len(problems) - 1
    expect(0 <= number <= last, "--show", f"a problem from 0 to {last}", number)
    problem = problems[number]
    subject.check(args, [problem], world)
    first, settings = args.settings[0].kind, subject.settings(args)
    where = world.device, checkpoint.DTYPES[args.dtype]
    policy, chains = Policy.load(subject.folder, first, settings, *where, plain=True), []
    for setting in args.settings:
        policy, key = policy.of_kind(setting.kind), (args.seed[0], str(setting), number)
        request = policy.request(problem, key, range(1))
        rollouts = policy.rollout([request], setting.greedy, greedy_answer=True)
        ((generation,),) = policy.score(rollouts, [(number, problem)], verifier, verifier.own)
        chains.append(look(policy, rollouts[0], setting, generation))
        print(as_text(chains[-1]))
    try:
        save_picture(args.out, draw(chains))
        print(f"written: {args.out}")
    except ImportError as error:
        print(error)


@torch.no_grad()
def look(policy: Policy, record: Rollout, setting: Setting, generation: dict) -> Chain:
    """Describe the CoT steps of a Rollout of one row, by one teacher-forced pass."""
    model, kind, decode = policy.model, policy.kind, policy.form.tokenizer.decode
    actions, thinking = record.taken(COT), record.role == COT
    logits = model.logits(encodings(model, kind, record)[thinking])  # (C, V)
    mixes = not isinstance(kind, Hard)
    weights, ids = (logits / kind.tau).softmax(-1), None
    if mixes:
        weights, ids = kind.weights(model, actions, logits)  # (C, m)
    weight, token = weights.topk(min(TOP, weights.shape[-1]))  # (C, TOP)
    token = token if ids is None else ids.gather(-1, token)
    inputs = kind.embed(model, actions).float()  # (C, d)
    distance, nearest = torch.cdist(inputs, model.E.float()).min(-1)  # (C,)

    def names(ids: torch.Tensor) -> list[str]:
        return [decode([i]) or f"<{i}>" for i in ids.tolist()]

    steps = zip(
        names(record.ids[thinking]),
        [list(zip(names(t), w.tolist())) for t, w in zip(token, weight)],
        torch.special.entr(weights).sum(-1).tolist(),
        names(nearest),
        distance.tolist(),
        *record.measures[thinking].T.tolist(),
    )
    length = rms(model.E) * model.config.hidden_size**0.5
    return Chain(setting, generation, mixes, kind.tau, length, [Step(*step) for step in steps])


def as_text(chain: Chain) -> str:
    """One line a step, for the terminal."""
    g, steps = chain.generation, chain.steps
    support, soft = fmean(s.support for s in steps), fmean(s.support > SOFT for s in steps)
    lines = [
        f"\n{chain.setting}, tau {chain.tau:g}: {len(steps)} steps; distances beside a "
        f"typical |E_v| of {chain.length:.2f}",
        f"question: {g['question']}",
        f"the input carries {support:.2f} tokens (effective support 1 / sum p^2, mean; "
        f"{soft:.0%} of steps above {SOFT}), its largest weight is "
        f"{fmean(s.largest for s in steps):.3f}",
        f"{'step':>4}  {'fed as':<12} {'tokens':>6} {'H(mix)':>6} {'H':>6} {'nearest':<12} "
        f"{'dist':>5}  weights",
    ]
    for t, s in enumerate(steps):
        weights = "  ".join(f"{token!r} {w:.3f}" for token, w in s.mixture if w >= 0.0005)
        lines.append(
            f"{t:>4}  {s.shadow!r:<12} {s.support:6.2f} {s.mixture_entropy:6.2f} {s.entropy:6.2f} "
            f"{s.nearest!r:<12} {s.distance:5.2f}  {weights}"
        )
    return "\n".join([*lines, f"answer: {g['answer']}   gold: {g['gold']}   reward: {g['reward']}"])


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
    """A Figure of what each step of some chains was fed, from left to right.

    A bar is the mixture: its pieces are the tokens with their weights, hatched all others.  Of hard
    tokens it is what the token was drawn from, only the drawn one grey.  Above: the entropy of
    these weights; below: the (shadow) token.  A chain longer than PER_ROW goes on below.
    """
    rows = [(chain, i) for chain in chains for i in range(0, len(chain.steps), PER_ROW)]
    figure = new_figure(12, 2.2 * len(rows) + 0.4)
    axes = figure.subplots(2 * len(rows), 1, height_ratios=[1, 4] * len(rows))
    highest = max(step.mixture_entropy for chain in chains for step in chain.steps)
    for (chain, start), line, bars in zip(rows, axes[::2], axes[1::2]):
        steps, left = chain.steps[start : start + PER_ROW], chain.steps[start + PER_ROW :]
        if start == 0:
            line.set_title(str(chain.setting), loc="left", fontsize="medium", weight="bold")
            line.set_title(_inputs(chain), fontsize="medium")
        entropies = [step.mixture_entropy for step in steps]
        line.plot(entropies, ".-", color="0", linewidth=0.8, markersize=3.5)
        line.set(ylim=(-0.2, max(1.2, 1.1 * highest)), yticks=(0, 1), ylabel="entropy\n(nats)")
        for at, step in enumerate(steps):
            _bar(bars, at, step, chain.mixes)
        bars.set(ylim=(-0.16, 1), yticks=(0, 0.5, 1))
        bars.set_ylabel("weights of\nthe mixture" if chain.mixes else "probability")
        _text(bars, -1, -0.1, "text:")
        if not left:
            g = chain.generation
            _text(bars, len(steps), 0.5, f"→ {g['answer'].rstrip('}')}", weight="bold")
            _text(bars, len(steps), 0.35, "right" if verified(g) == RIGHT else "wrong")
        for axis in (line, bars):
            axis.set(xlim=(-1.5, PER_ROW + 0.5), xticks=())
            axis.spines[:].set_visible(False)
    question = fill(chains[0].generation["question"], 120)
    figure.suptitle(question, fontsize="large", style="italic", parse_math=False)
    return figure


def _inputs(chain: Chain) -> str:
    """What the bars of a chain show."""
    if chain.mixes:
        noise = "" if chain.setting.greedy else ", with noise"
        return f"the input of each step is the bar's mixture of token embeddings{noise}"
    taken = "the most likely" if chain.setting.greedy else "drawn from the bar"
    return f"the input of each step is the embedding of one token (grey), {taken}"


def _bar(axis, at: int, step: Step, mixes: bool) -> None:
    """One mixture as a stacked bar, the heaviest token at the bottom, and the text below it."""
    rest = max(0.0, 1 - sum(weight for _, weight in step.mixture))
    drawn = step.shadow if step.shadow in dict(step.mixture) else ""  # "" stands for all others
    bottom = 0.0
    for (token, weight), shade in zip([*step.mixture, ("", rest)], SHADES):
        if not mixes:
            shade = SHADES[0] if token == drawn else "1"
        style = {"color": shade, "edgecolor": ".3", "linewidth": 0.5}
        axis.bar(at, weight, 0.86, bottom, hatch="" if token else "....", **style)
        if token and weight >= LEAST_TEXT:
            _text(axis, at, bottom + weight / 2, token, room=weight)
        bottom += weight
    _text(axis, at, -0.1, step.shadow, weight="bold")


def _text(axis, x: float, y: float, token: str, room: float = 1, **style) -> None:
    """A token without its space, small enough for its place; white space as a sign."""
    text = token.strip() or {"\n": "⏎"}.get(token, "␣")
    size = min(9.5, 46 / len(text), 70 * room)
    style = {"ha": "center", "va": "center", "parse_math": False, **style}
    axis.text(x, y, text, fontsize=size, **style)

"""eval.py --show: a look inside the chain of thought of one problem."""

from argparse import Namespace

from minisoft import data, evaluation, rollout
from minisoft.data import Format
from minisoft.errors import InputError
from minisoft.io import datasets
from minisoft.io.atomic import writing
from minisoft.lab import figures, inside
from minisoft.rollout import Decoding, Request
from minisoft.run.subjects import MARK, Subject
from minisoft.run.world import World


def show(args: Namespace, world: World, verifier) -> None:
    """Look inside the CoT of one problem, sample 0: the one that an evaluation draws."""
    if len(args.model) > 1 or len(args.data or []) > 1 or world.size > 1:
        raise InputError("--show: expected one model, one data set and one process, found more")
    args.plain = True
    subject = Subject.find(args.model[0])
    problems = datasets.load_problems((args.data or subject.default_data())[0])
    if not 0 <= args.show < len(problems):
        expected = f"a problem from 0 to {len(problems) - 1}"
        raise InputError(f"--show: expected {expected}, found {args.show}")
    subject.check(args, [problems[args.show]], world)
    evaluator = subject.load(args, (verifier, world, None, 1, True))
    model, tokenizer, settings = evaluator.model, evaluator.tokenizer, evaluator.settings
    problem, form = problems[args.show], Format(tokenizer)
    prompt = tokenizer.encode(data.prompt(problem.question, settings.template))
    chains = []
    for setting in args.settings:
        kind, key = settings.kind(setting.kind), (args.seed[0], str(setting), args.show)
        how = Decoding(settings.cot, setting.greedy, greedy_answer=True)
        record = rollout.rollout(model, form, kind, [Request(prompt, key, range(1))], how)[0]
        generation = evaluation.describe(form, record, args.show, problem, verifier)[0]
        chains.append(inside.look(model, form, kind, record, setting, generation))
        print(inside.as_text(chains[-1]))
    try:
        with writing(args.out):
            figures.chain(chains).savefig(args.out, dpi=160, metadata=MARK)
        print(f"written: {args.out}")
    except ImportError as error:
        print(f"the picture needs the extra `plot`: pip install matplotlib ({error})")

"""eval.py --show: a look inside the chain of thought of one problem."""

from argparse import Namespace

from minisoft.errors import InputError
from minisoft.io import datasets
from minisoft.io.atomic import writing
from minisoft.lab import figures, inside
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
    policy, problem, chains = subject.load(args, world.device), problems[args.show], []
    for setting in args.settings:
        of = policy.of_kind(setting.kind)
        request = of.request(problem, (args.seed[0], str(setting), args.show), range(1))
        (record,) = of.rollout([request], setting.greedy, greedy_answer=True)
        ((generation,),) = of.score([record], [(args.show, problem)], verifier)
        chains.append(inside.look(of.model, of.form, of.kind, record, setting, generation))
        print(inside.as_text(chains[-1]))
    try:
        with writing(args.out):
            figures.chain(chains).savefig(args.out, dpi=160, metadata=MARK)
        print(f"written: {args.out}")
    except ImportError as error:
        print(f"the picture needs the extra `plot`: pip install matplotlib ({error})")

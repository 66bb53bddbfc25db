"""A model and the way it thinks: what a rollout, its rewards and its gradient need, and no more.

    policy = Policy.load(folder, "soft", settings(folder, ["soft"], Flags(), TRAIN_COT))
    rollouts = policy.rollout([policy.request(problem, (seed, step, i), range(G))])

By the engine, or with `plain` by the definitions of the ground floor, at the same numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minisoft import data, engine, evaluation, reinforce, rollout
from minisoft.data import Format, Problem
from minisoft.io import checkpoint
from minisoft.model import Transformer
from minisoft.reinforce import Mismatch
from minisoft.rollout import Decoding, Request, Rollout
from minisoft.run.settings import Flags, Settings, resolve


def settings(folder: Path, kinds: list[str], flags: Flags, budget: int) -> Settings:
    """How the model of a folder makes tokens of these kinds, its weights unread; budget: the
    paper's CoT budget.  Raises InputError, also for a flag that none of the kinds uses."""
    flags.check(kinds)
    return resolve(checkpoint.read_about(folder), flags, budget, folder)


@dataclass(frozen=True)
class Policy:
    """Of one kind of token; settings are those of the weights."""

    model: Transformer
    form: Format
    settings: Settings
    kind: object
    plain: bool = False

    @classmethod
    def load(cls, folder: Path, tokens, settings, device="cpu", dtype=torch.float32, plain=False):
        """A Policy with the weights of a folder, for one kind of token.  Raises InputError."""
        model, tokenizer = checkpoint.load(folder, torch.device(device), dtype)
        if not plain:
            engine.accelerate(model)
        settings = settings.for_model(model)
        return cls(model, Format(tokenizer), settings, settings.kind(tokens), plain)

    def of_kind(self, tokens: str, **changes) -> "Policy":
        """The same model with another kind of token, or other settings."""
        settings = replace(self.settings, **changes)
        return replace(self, settings=settings, kind=settings.kind(tokens))

    def request(self, problem: Problem, key: tuple, samples: range) -> Request:
        """The samples of a problem that are to be rolled out; key: of their draws."""
        text = data.prompt(problem.question, self.settings.template)
        return Request(self.form.tokenizer.encode(text), key, samples)

    def rollout(self, requests, greedy=False, greedy_answer=False, **options) -> list[Rollout]:
        """Sections 3 and 4: a Rollout of each Request; options: those of `engine.stream`."""
        roll = rollout.rollout if self.plain else engine.rollout
        decoding = Decoding(self.settings.cot, greedy, greedy_answer)
        return roll(self.model, self.form, self.kind, requests, decoding, **options)

    def stream(self, requests: list[Request], greedy: bool, rows: int) -> Iterator[tuple]:
        """(number of the request, its Rollout) as they are done, `rows` rows at once, answers
        greedy and no actions recorded; by the definitions one request after another, whole."""
        decoding = Decoding(self.settings.cot, greedy, greedy_answer=True)
        made = self.model, self.form, self.kind
        if not self.plain:
            return engine.stream(*made, requests, decoding, rows=rows, record_actions=False)
        return enumerate(rollout.rollout(*made, [one], decoding)[0] for one in requests)

    def score(self, rollouts: list[Rollout], numbered: list, verifier) -> list[list[dict]]:
        """The scored generations (eq. 11, or the verifier's `own`) of each (number, Problem)."""
        of_problems = [
            evaluation.describe(self.form, record, number, problem, verifier)
            for record, (number, problem) in zip(rollouts, numbered, strict=True)
        ]
        for generations in of_problems if verifier.own else ():
            verifier.own.pay(generations)
        return of_problems

    def backward(self, rollouts: list[Rollout], advantages, scale: float, **options) -> Mismatch:
        """Eqs. 14-15: adds to the gradient of the model; options: those of `engine.backward`."""
        backward = reinforce.backward if self.plain else engine.backward
        return backward(self.model, self.kind, rollouts, advantages, scale, **options)

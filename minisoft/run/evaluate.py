"""Evaluations over ranks, every finished problem written down: what eval.py and train.py call."""

from dataclasses import dataclass

from tqdm import tqdm

from minisoft import data, engine, evaluation, rollout
from minisoft.data import ANSWER_TOKENS, Choice, Format, Problem
from minisoft.engine import choices
from minisoft.errors import InputError
from minisoft.evaluation import Setting
from minisoft.io.journal import Journal
from minisoft.rollout import Decoding, Request
from minisoft.run import harness
from minisoft.run.settings import Settings


@dataclass(frozen=True)
class Evaluator:
    """A model and what it is evaluated with.

    batch: rows (questions) at once; journal: problems that it knows under [run, setting, problem]
    are not done again; plain: by the definitions, a problem at a time.
    """

    model: object
    tokenizer: object
    settings: Settings
    verifier: object
    world: object
    journal: Journal
    batch: int
    plain: bool = False

    def problems(
        self, problems: list[Problem], setting: Setting, samples: int, seed, run: int = 0
    ) -> tuple[dict, list[dict]]:
        """Roll out `samples` of every problem (greedy: one), the answer always greedy.

        seed: any key.  Problems are shared out over the ranks.  Returns (summary, one dict for
        each generation, ordered by problem and sample); ranks but the main one get no generations.
        """
        form = Format(self.tokenizer)
        name, group = str(setting), 1 if setting.greedy else samples
        requests = []
        for i, problem in enumerate(problems):
            text = data.prompt(problem.question, self.settings.template)
            requests.append(Request(self.tokenizer.encode(text), (seed, name, i), range(group)))
        longest_first = sorted(range(len(problems)), key=lambda i: -len(requests[i].prompt))
        todo = self._todo([[run, name, i] for i in longest_first])  # so memory peaks at once
        with self._bar(len(todo) * group, name, "row") as bar:
            for n, record in self._rollouts(form, setting, [requests[i] for _, _, i in todo]):
                i = todo[n][2]
                made = evaluation.describe(form, record, i, problems[i], self.verifier)
                self.journal.add(todo[n], made)
                bar.update(group)
        generations = []
        for of_problem in self._collect([[run, name, i] for i in range(len(problems))]):
            generations += of_problem
        summary = self.world.from_main(lambda: evaluation.summarize(generations, group))
        return summary, generations

    def _rollouts(self, form: Format, setting: Setting, requests: list[Request]):
        """(number of the request, Rollout), as they are done."""
        kind = self.settings.kind(setting.kind)
        how = Decoding(self.settings.cot, setting.greedy, greedy_answer=True)
        if not self.plain:
            options = {"rows": self.batch, "record_actions": False}
            return engine.stream(self.model, form, kind, requests, how, **options)
        one = (rollout.rollout(self.model, form, kind, [request], how) for request in requests)
        return ((n, records[0]) for n, records in enumerate(one))

    def choices(self, questions: list[Choice], run: int = 0) -> tuple[dict, list[dict]]:
        """Multiple choice: accuracy and NLL per token of the right option (nats), also in the words
        of `training.harness`."""
        keys = [[run, "choices", i] for i in range(len(questions))]
        todo = [(i, questions[i]) for _, _, i in self._todo(keys)]
        with self._bar(len(todo), "choices", "question") as bar:
            for i, record in self._scored(todo):
                self.journal.add(keys[i], record)
                bar.update()
        records = list(self._collect(keys))
        summary = self.world.from_main(
            lambda: evaluation.summarize_choices(records) | harness.results(records)
        )
        return summary, [r | harness.sample(r, questions[r["problem"]]) for r in records]

    def _scored(self, questions: list[tuple[int, Choice]]):
        """(number of the question, its record), as they are done."""
        if not self.plain:
            return choices.score(self.model, self.tokenizer, questions, self.batch)
        of = self.model, self.tokenizer
        return ((i, evaluation.score_choice(*of, i, question)) for i, question in questions)

    def _todo(self, keys: list) -> list:
        """This rank's part of what the journal does not know."""
        new = [key for key in keys if key not in self.journal]
        return new[self.world.rank :: self.world.size]

    def _collect(self, keys: list) -> list:
        """What all ranks have made, in the order of the keys, on the main rank."""
        self.journal.collect()
        return [self.journal.take(key) for key in keys] if self.world.main else []

    def _bar(self, total: int, name: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=name, unit=unit, leave=False, disable=not self.world.main)


def lengthened(
    rows: list[Problem] | list[Choice], settings: Settings, form: Format
) -> list[tuple[str, int]]:
    """Of each prompt, or each option in its context: (text, how many tokens may follow it)."""
    after = settings.cot + max(map(len, form.prefill)) + ANSWER_TOKENS
    texts = []
    for row in rows:
        if isinstance(row, Choice):
            texts += [(f"{row.context} {option}", 0) for option in row.options]
        else:
            texts.append((data.prompt(row.question, settings.template), after))
    return texts


def check_prompts(folder, config, tokenizer, texts: list[tuple[str, int]], world) -> None:
    """Before anything runs: can the model of `folder` take these texts (see `lengthened`)?

    Says so in one line where they go on beyond the positions that it is made for.  Raises
    InputError for a token without a row in E, which an added one may be.
    """
    longest = 0
    for text, after in texts:
        ids = tokenizer.encode(text)
        if max(ids, default=0) >= config.vocab_size:
            i = next(i for i in ids if i >= config.vocab_size)
            ends = (text[:end] for end in range(1, len(text) + 1))
            until = next((end for end in ends if i in tokenizer.encode(end)), text)
            raise InputError(
                f"{folder}: vocab_size: expected more than {i}, a token of the prompts, the last "
                f"of {until[-60:]!r}; found {config.vocab_size}"
            )
        longest = max(longest, len(ids) + after)
    if config.max_positions is not None and longest > config.max_positions:
        world.say(
            f"{folder}: max_position_embeddings: made for {config.max_positions} positions, but "
            f"the longest text may take {longest}, with CoT budget, prefill and answer"
        )

"""Evaluations over ranks, every finished problem written down.  Multiple choice is also written in
the words of lm-evaluation-harness (0.4): names, numbers and, in a question's line, strings for
numbers are those of its results and its --log_samples."""

from dataclasses import dataclass
from statistics import fmean, stdev

from minisoft import data, evaluation
from minisoft.data import ANSWER_TOKENS, Choice, Format
from minisoft.engine import choices
from minisoft.errors import InputError
from minisoft.evaluation import Setting
from minisoft.io.journal import Journal
from minisoft.run.policy import Policy
from minisoft.run.settings import Settings
from minisoft.run.world import World, bar


@dataclass(frozen=True)
class Evaluator:
    """A policy and what it is evaluated with; batch: rows (questions) at once; journal: problems
    that it knows under [run, setting, problem] are not done again."""

    policy: Policy
    verifier: object
    world: World
    journal: Journal
    batch: int

    def problems(self, problems: list, setting: Setting, samples: int, seed, run=0) -> tuple:
        """Roll out `samples` of every problem (greedy: one), the answer always greedy, shared out
        over the ranks; seed: any key.  Returns (summary, a dict for each generation, by problem and
        sample, on the main rank)."""
        policy, name = self.policy.of_kind(setting.kind), str(setting)
        group = 1 if setting.greedy else samples
        requests = [
            policy.request(problem, (seed, name, i), range(group))
            for i, problem in enumerate(problems)
        ]
        keys = [[run, name, i] for i in range(len(problems))]
        longest_first = sorted(keys, key=lambda key: -len(requests[key[2]].prompt))
        todo = self.journal.missing(longest_first)  # so memory peaks at once
        some = [requests[i] for _, _, i in todo]
        with self._bar(len(todo) * group, name, "row") as progress:
            for n, record in policy.stream(some, setting.greedy, self.batch):
                i = todo[n][2]
                (generations,) = policy.score([record], [(i, problems[i])], self.verifier)
                self.journal.add(todo[n], generations)
                progress.update(group)
        of_problems = self.journal.take(keys)
        generations = [generation for of_problem in of_problems for generation in of_problem]
        summary = self.world.from_main(lambda: evaluation.summarize(generations, group))
        return summary, generations

    def choices(self, questions: list[Choice], run: int = 0) -> tuple[dict, list[dict]]:
        """Multiple choice: accuracy, NLL per token (nats) of the right option, harness's words."""
        keys = [[run, "choices", i] for i in range(len(questions))]
        todo = [(i, questions[i]) for _, _, i in self.journal.missing(keys)]
        made = self.policy.model, self.policy.form.tokenizer
        if self.policy.plain:
            scored = ((i, evaluation.score_choice(*made, i, x)) for i, x in todo)
        else:
            scored = choices.score(*made, todo, self.batch)
        with self._bar(len(todo), "choices", "question") as progress:
            for i, record in scored:
                self.journal.add(keys[i], record)
                progress.update()
        records = self.journal.take(keys)
        lines = [r | harness_line(r, questions[r["problem"]]) for r in records]
        summarize = evaluation.summarize_choices
        return self.world.from_main(lambda: summarize(lines) | harness_results(lines)), lines

    def _bar(self, total: int, name: str, unit: str):
        return bar(total=total, desc=name, unit=unit, leave=False, disable=not self.world.main)


def lengthened(rows: list, settings: Settings, form: Format) -> list[tuple[str, int]]:
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
    """Before anything runs: raises InputError for a token (of `lengthened` texts) without a row in
    E, which an added one may be; says in one line where texts go beyond the model's positions."""
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


def harness_results(lines: list[dict]) -> dict[str, float]:
    """Lines of questions -> acc, acc_norm (fractions), standard errors."""
    numbers = {}
    for name in ("acc", "acc_norm"):
        right = [line[name] for line in lines]
        numbers[name] = fmean(right)
        if len(right) > 1:
            numbers[f"{name}_stderr"] = stdev(right) / len(right) ** 0.5
    return numbers


def harness_line(record: dict, question: Choice) -> dict:
    """A question's line: of each option its log-probability; does greedy decoding write it?"""
    context, options = question.context, question.options
    answers = [[str(x), str(best)] for x, best in zip(record["log_probs"], record["greedy"])]
    return {
        "doc_id": record["problem"],
        "doc": {"query": context, "choices": list(options), "gold": question.answer},
        "target": str(record["answer"]),
        "arguments": {
            f"gen_args_{i}": {"arg_0": context, "arg_1": f" {option}"}
            for i, option in enumerate(options)
        },
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "acc": float(record["picked"] == record["answer"]),
        "acc_norm": float(record["picked_norm"] == record["answer"]),
    }

"""Multiple choice in the words of lm-evaluation-harness (0.4), for those who lay both side by side.

Names, numbers and, in a sample, strings in the place of numbers are those of its results and of the
files that its --log_samples writes.
"""

from statistics import fmean, stdev

from minisoft.data import Choice


def results(records: list[dict]) -> dict[str, float]:
    """Records of `evaluation.score_choice` -> acc, acc_norm (fractions), and from two questions on
    their standard errors."""
    numbers = {}
    for name, picked in (("acc", "picked"), ("acc_norm", "picked_norm")):
        right = [float(record[picked] == record["answer"]) for record in records]
        numbers[name] = fmean(right)
        if len(right) > 1:
            numbers[f"{name}_stderr"] = stdev(right) / len(right) ** 0.5
    return numbers


def sample(record: dict, question: Choice) -> dict:
    """A question's line: of each option the log-probability in nats, and whether greedy decoding
    would have written it."""
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

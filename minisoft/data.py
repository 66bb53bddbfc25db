"""Problems, the prompt, the answer format, and which problems a step uses.

A problem comes from a JSONL or JSON file in one of the formats below, from the hub (extra `data`), or from "tiny",
the generated problems of the embedded model.
"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from minisoft import tiny
from minisoft.errors import InputError

STOP = "The final answer is:"  # a CoT ends as soon as its (shadow) text ends with this (section 4)
PREFILL_EARLY = r" \boxed{"  # what follows then
PREFILL_LATE = r" The final answer is: \boxed{"  # what follows when the CoT budget is spent instead
PAPER_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first shows the complete reasoning process step by step, then provides the final answer in \\boxed{}. The "
    "assistant must always follow the format: 'User: [question] Assistant: [detailed reasoning] The final answer is: "
    "\\boxed{[answer]}.' User: QUESTION Assistant:")  # section 4
HUB = {  # short name -> (hub dataset, configuration, split)
    "gsm8k": ("openai/gsm8k", "main", "train"), "gsm8k-test": ("openai/gsm8k", "main", "test"),
    "math-500": ("HuggingFaceH4/MATH-500", None, "test"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", None, "train"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train")}
TINY = {"tiny": (0, 4000, (2, 4)), "tiny-test": (1, 400, (2, 4)), "tiny-hard": (2, 400, (5, 6))}  # seed, size, steps


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str  # the gold answer as it would stand inside \boxed{}


def load_problems(source: str | Path) -> list[Problem]:
    """Problems of a .jsonl or .json file, of "tiny", "tiny-test", "tiny-hard", or of the hub ("gsm8k", "math-500", ...,
    or "owner/name[:configuration[:split]]").  Raises InputError."""
    path = Path(source)
    if path.is_file():
        rows = _read_file(path)
    elif str(source) in TINY:
        seed, size, steps = TINY[str(source)]
        return [Problem(*tiny.problem(seed, i, steps)) for i in range(size)]
    elif path.suffix in (".json", ".jsonl"):
        raise InputError(f"{source}: expected a data file, found no such file")
    else:
        rows = _read_hub(str(source))
    problems = [_problem(row, where) for where, row in rows]
    if not problems:
        raise InputError(f"{source}: expected at least one row, found none")
    return problems


def _read_file(path: Path):
    """(where, row) of each row of a JSONL file, or of a JSON list."""
    text = path.read_text("utf-8")
    try:
        if text.lstrip().startswith("["):
            return [(f"{path}: row {i}", row) for i, row in enumerate(json.loads(text), 1)]
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON list, found: {error}") from None
    rows = []
    for i, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"{path}: line {i}", json.loads(line)))
            except ValueError as error:
                raise InputError(f"{path}: line {i}: expected a JSON object, found: {error}") from None
    return rows


def _read_hub(name: str):
    dataset, configuration, split = HUB.get(name) or (name.split(":") + [None, None])[:3]
    if name not in HUB and name.count("/") != 1:
        raise InputError(f"{name}: expected a .jsonl or .json file, owner/name on the hub, or one of "
                                f"{', '.join([*TINY, *HUB])}; found no such file")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: datasets of the hub need the extra `data`: pip install 'minisoft[data]'") from None
    try:
        rows = datasets.load_dataset(dataset, configuration or None, split=split or "train")
    except Exception as error:  # the library raises many kinds
        raise InputError(f"{name}: could not be fetched ({type(error).__name__}: {error}); "
                        "download it and give the .jsonl file instead") from None
    return [(f"{name}: row {i}", row) for i, row in enumerate(rows, 1)]


def _problem(row, where: str) -> Problem:
    """One row in the format of GSM8K, MATH, MATH-500, DeepScaleR, OlympiadBench, MAWPS, or plain question/answer."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    question = next((row[k] for k in ("question", "problem", "input") if isinstance(row.get(k), str)), None)
    if not question or not question.strip():
        raise InputError(f"{where}: expected a text in question, problem or input, found fields {', '.join(row)}")
    answer = _answer(row)
    if not answer:
        raise InputError(f"{where}: expected an answer in answer, final_answer, target or a \\boxed{{}} of solution, "
                        f"found fields {', '.join(row)}")
    if isinstance(row.get("context"), str) and row["context"].strip():  # OlympiadBench
        question = f"{row['context'].strip()} {question}"
    return Problem(question.strip(), answer)


def _answer(row: dict) -> str | None:
    if isinstance(row.get("final_answer"), list):  # OlympiadBench
        return ", ".join(str(a).strip().strip("$") for a in row["final_answer"])
    value = next((row[k] for k in ("answer", "target", "final_answer") if row.get(k) is not None), None)
    if isinstance(value, (int, float)) and not isinstance(value, bool):  # MAWPS: 14.0
        return str(int(value)) if float(value).is_integer() else repr(value)
    if isinstance(value, str):
        return value.rsplit("####", 1)[-1].strip()  # GSM8K: the gold follows ####
    if isinstance(row.get("solution"), str):  # MATH as first published
        start = row["solution"].rfind(r"\boxed{")
        return boxed(row["solution"][start + 7:]) if start >= 0 else None
    return None


def boxed(text: str) -> str | None:
    r"""What stands before the brace that closes a box whose `\boxed{` has just been written; None if none closes it.
    Escaped braces \{ \} are text."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[: match.start()]
    return None


def prompt(question: str, template: str = PAPER_PROMPT) -> str:
    """The text before the CoT (section 4): `template` with QUESTION replaced."""
    return template.replace("QUESTION", question)


def read_prompt(path: str | Path) -> str:
    """A prompt template from a file; newlines at its end are dropped.  Raises InputError without exactly one QUESTION."""
    template = Path(path).read_text("utf-8").rstrip("\n")
    if template.count("QUESTION") != 1:
        raise InputError(f"{path}: expected the placeholder QUESTION once, found it {template.count('QUESTION')} times")
    return template


def split(problems: list[Problem], validation: int) -> tuple[list[Problem], list[Problem]]:
    """(training, validation): `validation` problems held out, the same ones whatever the seed of a run."""
    if not 0 <= validation < len(problems):
        raise InputError(f"validation: expected fewer than the {len(problems)} problems at hand, found {validation}")
    order = random.Random("minisoft/validation").sample(range(len(problems)), len(problems))
    return [problems[i] for i in sorted(order[validation:])], [problems[i] for i in sorted(order[:validation])]


def batch(count: int, prompts: int, seed: int, step: int) -> list[int]:
    """Which `prompts` of `count` problems step `step` uses: every epoch is a new permutation; (seed, step) decide."""
    if prompts > count:
        raise InputError(f"prompts: expected at most the {count} training problems, found {prompts}")
    per_epoch = count // prompts
    epoch, position = divmod(step, per_epoch)
    order = random.Random(f"minisoft/epoch/{seed}/{epoch}").sample(range(count), count)
    return order[position * prompts: (position + 1) * prompts]

"""The best of a run's models, and its table before/after, by greedy decoding (appendix A)."""

from copy import copy

from minisoft.data import Problem
from minisoft.evaluation import Setting
from minisoft.io import checkpoint
from minisoft.io.journal import Journal
from minisoft.run.evaluate import Evaluator
from minisoft.run.metrics import markdown


def evaluate(run, problems: list[Problem]) -> dict[str, dict]:
    """The run's policy, hard and by its own kind: {setting: {"pass@1": ..., ...}}."""
    if not problems:
        return {}
    args, journal = run.args, Journal(None, {}, run.world)
    policy = run.policy.of_kind(args.tokens, cot=args.eval_cot)
    verifier = copy(run.verifier)
    verifier.own = None  # pass@k is not its business
    evaluator = Evaluator(policy, verifier, run.world, journal, args.eval_batch)
    greedy = [Setting(kind, True) for kind in dict.fromkeys(("hard", args.tokens))]
    return {str(setting): evaluator.problems(problems, setting, 1, 0)[0] for setting in greedy}


def keep_best(run) -> dict[str, float]:
    """Validate; RUN/best is the model that is best by the run's own kind.  Returns `validation`, by
    that kind, and `validation_hard`; {} without validation problems."""
    results = evaluate(run, run.problems.validation)
    if not results:
        return {}
    progress, world = run.progress, run.world
    passed = {name: result["pass@1"] for name, result in results.items()}
    shown = ", ".join(f"{x:.1%} ({name})" for name, x in passed.items())
    world.say(f"step {progress.step}: validation {shown}")
    by_kind = passed[f"{run.args.tokens}-greedy"]
    best = run.args.out / "best"
    there = world.from_main(lambda: checkpoint.read_about(best).get("step"))
    lost = there != progress.best_step  # or of updates that a kill has undone
    if lost and by_kind <= progress.best:
        expected = f"expected the model after update {progress.best_step}, found {there}"
        world.say(f"{best}: {expected}: it is chosen anew from here on")
    if lost or by_kind > progress.best:
        progress.best = by_kind
        progress.best_step = progress.step
        run.files.save_model("best", run.policy, progress.step)
    return {"validation": by_kind, "validation_hard": passed["hard-greedy"]}


def finish(run) -> None:
    """Test the best model, write RUN/summary.json, print the table before/after."""
    progress, out = run.progress, run.args.out
    best = out / ("last" if progress.best_step is None else "best")
    if progress.best_step is not None:
        weights = run.world.all_or_none(lambda: checkpoint.load_model(best).state_dict())
        run.policy.model.load_state_dict(weights)
    before, after = progress.before, evaluate(run, run.problems.test)
    summary = {
        "before": before,
        "after": after,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "validation": progress.best if run.problems.validation else None,
        "best_step": progress.best_step,
    }
    rows = [["greedy accuracy", "before", "after"]]
    for setting in after:
        rows.append([setting, *(f"{of[setting]['pass@1']:.1%}" for of in (before, after))])
    title = f"{len(run.problems.test)} test problems, {run.args.tokens} tokens, "
    title += f"{progress.step} updates"
    table = markdown(rows) if after else ""
    try:
        card = f"{title}:\n\n{table}" if after else ""
        run.world.from_main(lambda: run.files.finish(best, summary, card))
    finally:
        run.world.say(f"\n{title} in {progress.seconds:.0f} s\n{table}\nmodel: {best}")

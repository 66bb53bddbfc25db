"""Results as eval.py writes them, with numbers that are easy to check."""

SAMPLE = {"pass@1": 0.5, "pass@2": 0.625, "pass@3": 0.75, "pass@4": 0.8, "boxed": 0.9}
SAMPLE |= {"truncated": 0.1, "cot_length": 20.0, "entropy": 0.25}
SAMPLE["ci95"] = {f"pass@{k}": [0.4, 0.9] for k in (1, 2, 3, 4)}
PROFILE = {"entropy_by_position": [0.9, 0.5, 0.4, 0.2], "rows_by_position": [200, 150, 10, 9]}
GREEDY = {"pass@1": 0.375, "ci95": {"pass@1": [0.3004, 0.44996]}, "boxed": 1.0, "truncated": 0.0}
GREEDY |= {"cot_length": 41.25, "entropy": 0.3149}
CHOICES = {"accuracy": 0.25, "accuracy_norm": 0.5, "nll": 1.525}
CHOICES["ci95"] = {"accuracy": [0.2, 0.3], "accuracy_norm": [0.45, 0.55], "nll": [1.5, 1.55]}


def result(label="soft", seed=0, data="d/gsm8k_test.jsonl", samples=4, **fields):
    made = {"model": f"runs/{label}{seed}/best", "label": label, "named": True, "data": data}
    made |= {"problems": 200, "samples": samples, "seed": seed, "sigma": 0.04, "cot": 512}
    made |= {"dtype": "float32", "settings": {"hard-greedy": GREEDY, "hard-sample": SAMPLE}}
    return made | fields

"""The house: who may import whom, and what is not loaded before it is needed."""

import ast
from graphlib import TopologicalSorter

from runs import ROOT, python

PATHS = [*ROOT.glob("minisoft/**/*.py"), ROOT / "train.py", ROOT / "eval.py"]
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PATHS]
FILES = {name.removesuffix(".__init__"): path for name, path in zip(NAMES, PATHS)}
BELOW = {  # storey -> the storeys that it stands on; the ground floor is the files of minisoft/
    "errors": "",
    "ground": "errors",
    "kinds": "errors ground",
    "engine": "errors ground",
    "io": "errors ground kinds",
    "verifier": "errors ground",
    "run": "errors ground kinds engine io verifier",
    "train": "errors ground kinds engine io verifier run",
    "lab": "errors ground kinds engine io verifier run",
    "eval": "errors ground kinds engine io verifier run",
}
DOORS = {("minisoft", "io"), ("minisoft.data", "io"), ("minisoft.reward", "verifier")}


def storey(module):
    parts = module.removeprefix("minisoft.").split(".")
    return parts[0] if parts[0] in BELOW else "ground"


def imports(module):
    """The project's modules that this one imports: {(name, inside a function?)}."""
    tree = ast.parse(FILES[module].read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    imported = set()
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in full]
        imported |= {(name, node in inside) for name in names if name in FILES}
    return imported


IMPORTS = {module: imports(module) for module in FILES}


def test_imports_run_one_way_but_for_three_doors():
    doors = set()
    for module, imported in IMPORTS.items():
        allowed = {storey(module), *BELOW[storey(module)].split()}
        upwards = {(name, lazy) for name, lazy in imported if storey(name) not in allowed}
        assert all(lazy for _, lazy in upwards), (module, upwards)
        doors |= {(module, storey(name)) for name, _ in upwards}
        assert not {name for name, lazy in imported - upwards if lazy}, module
    assert doors == DOORS


def test_no_modules_import_each_other_in_a_circle():
    at_top = {module: {name for name, lazy in of if not lazy} for module, of in IMPORTS.items()}
    assert sum(map(len, at_top.values())) > 100  # they were found
    TopologicalSorter(at_top).prepare()


NOT_LOADED = {  # by modules that are imported one after another
    "minisoft": "torch minisoft.io minisoft.data",
    "minisoft.data": "torch",
    "minisoft.reinforce, minisoft.evaluation": "minisoft.kinds minisoft.engine minisoft.io",
    "train, eval": "minisoft.lab matplotlib transformers torch._dynamo",  # torch's compiler
    "minisoft.lab.tables": "minisoft.lab.study minisoft.lab.findings matplotlib",
}


def test_what_is_not_needed_is_not_loaded():
    code = "".join(f"import {modules}; print(*sys.modules)\n" for modules in NOT_LOADED)
    told = python("-c", f"import sys\n{code}").stdout
    for absent, loaded in zip(NOT_LOADED.values(), told.splitlines(), strict=True):
        for name in absent.split():
            assert not [m for m in loaded.split() if m == name or m.startswith(name + ".")], name


CEILINGS = {  # lines of a storey; raising one is a change that somebody sees
    "errors": 30,
    "ground": 1_310,
    "kinds": 565,  # with the table of options, from which all flags are made
    "engine": 1_238,
    "io": 1_696,
    "verifier": 763,
    "run": 2_615,
    "train": 173,
    "eval": 211,
    "lab": 1_931,
}
LONGEST = 45  # lines of a function


def test_no_storey_grows_beyond_its_ceiling():
    lines = dict.fromkeys(CEILINGS, 0)
    for module, path in FILES.items():
        lines[storey(module)] += path.read_text("utf-8").count("\n")
    assert {name: (n, CEILINGS[name]) for name, n in lines.items() if n > CEILINGS[name]} == {}


def test_no_function_is_longer_than_a_page():
    long = {}
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST:
                long[f"{module}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert long == {}

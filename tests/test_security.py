"""Nothing that comes from a model folder is executed (answers: verifier/test_hostile.py)."""

import ast
import json
import os
import pickle

import pytest
from runs import ROOT, tiny_at

from minisoft.errors import InputError
from minisoft.io import checkpoint

SOURCES = [*ROOT.glob("*.py"), *(ROOT / "minisoft").rglob("*.py"), *ROOT.glob("weights/*.py")]


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path):
    return tiny_at(tmp_path / "model")


FORBIDDEN = "pickle marshal shelve dill eval exec compile __import__ os.system os.popen torch.load"
FORBIDDEN += " torch.serialization.load"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_evaluates(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            names.add(ast.unparse(node.func))
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    if path.name == "own.py":  # --reward: a program of the user's own
        names -= {"compile", "exec"}
    assert not names & {*FORBIDDEN.split()}
    assert "trust_remote_code=True" not in path.read_text() and "shell=True" not in path.read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pickled_weights_are_refused_unopened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(InputError, match="model.safetensors: expected a"):
        checkpoint.load(folder)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()  # it would have


def test_code_and_templates_of_a_model_folder_are_not_run(folder, tmp_path):
    evil = f"import os; os.mkdir({str(tmp_path / 'exploded')!r})\n"
    for name in ("modeling_llama.py", "configuration_llama.py", "tokenization.py", "conftest.py"):
        (folder / name).write_text(evil)
    template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "exploded") + "') }}"
    (folder / "chat_template.jinja").write_text(template)
    code = {"config.json": {"AutoModelForCausalLM": "modeling_llama.Model"}}
    code["tokenizer_config.json"] = {"AutoTokenizer": ["tokenization.T", None]}
    for name, auto_map in code.items():
        config = json.loads((folder / name).read_text())
        config |= {"auto_map": auto_map, "chat_template": template}
        (folder / name).write_text(json.dumps(config))
    model, tokenizer = checkpoint.load(folder)
    checkpoint.save_model(tmp_path / "out", model, checkpoint.read_files(folder), {})
    assert tokenizer.encode("3 + 4") and not (tmp_path / "exploded").exists()
    assert not list((tmp_path / "out").glob("*.py"))

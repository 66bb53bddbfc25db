"""Functions that a GPU does in one kernel: where that does not work they run as they are."""

from types import SimpleNamespace

import pytest
import torch

from minisoft.engine.cuda import OneKernel

ON_GPU = SimpleNamespace(is_cuda=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(OneKernel, "works", True)


def compiled_to(result, at_once=False):
    """A torch.compile whose functions return, or raise, this; or which itself does."""

    def run(*_):
        if isinstance(result, Exception):
            raise result
        return result

    return lambda function, **options: run() if at_once else run


def test_on_a_cpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", compiled_to("compiled"))
    double = OneKernel(lambda x: 2 * x)
    assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0))
    assert OneKernel(lambda x: "as it is")(ON_GPU) == "compiled"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_compiler_that_fails_is_told_once_and_done_without(monkeypatch, capsys, at_once):
    compile = compiled_to(RuntimeError("no C compiler\nfound"), at_once)
    monkeypatch.setattr(torch, "compile", compile)
    one, other = (OneKernel(lambda x: "as it is") for _ in range(2))
    assert [one(ON_GPU), one(ON_GPU), other(ON_GPU)] == ["as it is"] * 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("could be (RuntimeError: no C compiler)")


def test_no_memory_is_no_fault_of_the_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", compiled_to(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        OneKernel(lambda x: "as it is")(ON_GPU)
    assert OneKernel.works

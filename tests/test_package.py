"""What is installed: every sub-package, and nothing else."""

import re

from runs import ROOT

FOLDERS = {path.parent.relative_to(ROOT) for path in ROOT.glob("minisoft/**/__init__.py")}


def test_every_sub_package_is_listed():
    project = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^packages = \[(.*?)\]", project, re.M | re.S)
    assert sorted(re.findall(r'"(.*?)"', listed)) == sorted(".".join(p.parts) for p in FOLDERS)
    with_sources = {path.parent.relative_to(ROOT) for path in ROOT.glob("minisoft/**/*.py")}
    assert with_sources == FOLDERS  # no folder was forgotten

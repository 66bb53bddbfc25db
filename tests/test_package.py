"""What is installed: every sub-package, and nothing else."""

import re
import subprocess
import sys
import zipfile

import pytest
from runs import ROOT

FOLDERS = {path.parent.relative_to(ROOT) for path in ROOT.glob("minisoft/**/__init__.py")}


def test_every_sub_package_is_listed():
    project = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^packages = \[(.*?)\]", project, re.M | re.S)
    assert sorted(re.findall(r'"(.*?)"', listed)) == sorted(".".join(p.parts) for p in FOLDERS)
    with_sources = {path.parent.relative_to(ROOT) for path in ROOT.glob("minisoft/**/*.py")}
    assert with_sources == FOLDERS  # no folder was forgotten


@pytest.mark.slow
def test_a_wheel_holds_every_source(tmp_path):
    """Built with the setuptools that is there: nothing is downloaded."""
    pytest.importorskip("setuptools")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheels")]
    copy = tmp_path / "minisoft"
    for path in [*ROOT.glob("minisoft/**/*.py"), ROOT / "pyproject.toml", ROOT / "README.md"]:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("minisoft-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert held == {str(path.relative_to(ROOT)) for path in ROOT.glob("minisoft/**/*.py")}

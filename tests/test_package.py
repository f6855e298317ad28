"""The sdist and the wheel contain the self-test model and work."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import llmdeploy
from tests.conftest import EXAMPLES, ROOT, World

MODEL = ("selftest-f16.gguf", "mmproj-selftest-f16.gguf", "hf/model.safetensors", "hf/config.json", "hf/tokenizer.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, without isolation: hatchling is installed, and no network is needed."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_carries_the_model_and_the_catalog(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"llmdeploy/selftest/{name}" for name in MODEL} <= names
    assert {"llmdeploy/models/catalog/catalog.toml", "llmdeploy/py.typed"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"llmdeploy"}
    assert not [name for name in names if name.endswith("train.py")], "a program that needs torch"


def test_the_sdist_carries_what_a_packager_needs(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "tests/conftest.py",
        "completions/_llmdeploy",
        "scripts/test",
    } <= names
    assert {f"llmdeploy/selftest/{name}" for name in MODEL} <= names


def test_the_wheel_runs(built: Path, world: World, tmp_path: Path) -> None:
    """Serve a model from the wheel, unpacked into a folder that precedes the checkout on the path."""
    [wheel] = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    world.environment["PYTHONPATH"] = str(tmp_path / "site")
    assert world.run("--version").stdout == f"llmdeploy {llmdeploy.__version__}\n"
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import llmdeploy; print(llmdeploy.__file__)"],
        env=world.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path))
    assert world.run("chat", "--image", EXAMPLES / "red.png", "color?").stdout == "The image is red.\n"


def test_changelog_and_package_agree() -> None:
    newest = next(
        line
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## [") and "Unrel" not in line
    )
    assert newest.startswith(f"## [{llmdeploy.__version__}] - ")


def test_the_shipped_model_is_whole() -> None:
    """Check that the three formats have the same weights, and that the catalog has the sizes of the files."""
    catalog = tomllib.loads((ROOT / "llmdeploy" / "models" / "catalog" / "catalog.toml").read_text())["models"][
        "selftest"
    ]["gguf"]
    folder = ROOT / "llmdeploy" / "selftest"
    assert (folder / "selftest-f16.gguf").stat().st_size == catalog["bytes"]["f16"]
    assert (folder / catalog["mmproj"]).stat().st_size == catalog["mmproj_bytes"]

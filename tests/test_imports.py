"""The shape of the package: who may import whom, who may speak, and what a fast answer must not load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llmdeploy"

# Programs of their own, which are run and never imported: they have a stdout and an exit status of their own.
PROGRAMS = {
    "llmdeploy.service.watchdog",
    "llmdeploy.engines.llamacpp.server_program",
    "llmdeploy.engines.vllm.inspect_python",
    "llmdeploy.selftest.train",
}
FACE = {"llmdeploy.__main__", "llmdeploy.cli"}

# A module imports from its own layer and those below it.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"doctor", "endpoint"},
    {"service"},
    {"gateway"},
    {"engines", "fit", "plan"},
    {"models", "hardware", "images", "image_sources", "client"},
    {
        "address",
        "atomic_file",
        "background",
        "config",
        "config_types",
        "dotenv",
        "errors",
        "http1",
        "paths",
        "rules",
        "text",
        "tls",
        "units",
        "validation_messages",
        "__init__",
    },
]

ONLY_IN: dict[str, set[str]] = {
    "pynvml": {"llmdeploy.hardware"},
    "huggingface_hub": {"llmdeploy.models.hub"},
    "hf_xet": {"llmdeploy.models.hub"},
    "ollama": {"llmdeploy.engines.ollama.connection"},
    "xllamacpp": {"llmdeploy.engines.llamacpp.server_program"},
    "vllm": set(),
    "torch": {"llmdeploy.selftest.train"},
}


def name_of(file: Path) -> str:
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(file): ast.parse(file.read_text(), file) for file in sorted(PACKAGE.rglob("*.py"))}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: those for type checkers left out."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        for node in tree.orelse:
            yield from nodes(node)
        return
    yield tree
    for node in ast.iter_child_nodes(tree):
        yield from nodes(node)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that a module imports, inside functions too; `from package import module` names the module."""
    found = set()
    for node in nodes(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            assert node.module is not None
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in named}
    return frozenset(found)


def top(name: str) -> str:
    return name.split(".")[0]


def layer(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    return next((at for at, parts in enumerate(LAYERS) if part in parts), -1)


def is_face(module: str) -> bool:
    return module in FACE or module.startswith("llmdeploy.cli.")


def test_the_modules_are_read() -> None:
    assert {"llmdeploy", "llmdeploy.cli", "llmdeploy.cli.main", "llmdeploy.__main__", "llmdeploy.plan"} <= set(MODULES)
    assert "llmdeploy.service.process" in imports("llmdeploy.service.state")
    assert "pynvml" in imports("llmdeploy.hardware"), "an import inside a function"
    assert "rich.table" not in imports("llmdeploy.cli.output"), "an import for type checkers"


@pytest.mark.parametrize("module", [name for name in MODULES if not is_face(name)])
def test_only_the_face_knows_typer_and_rich(module: str) -> None:
    assert not {name for name in imports(module) if is_face(name) or top(name) in {"typer", "rich"}}
    texts = [node.value for node in nodes(MODULES[module]) if isinstance(node, ast.Constant)]
    assert not [text for text in texts if str(text).startswith("llmdeploy.cli")], "an import by name"


@pytest.mark.parametrize("module", [name for name in MODULES if not is_face(name) and name not in PROGRAMS])
def test_only_the_face_prints_and_exits(module: str) -> None:
    calls = [ast.unparse(node.func) for node in nodes(MODULES[module]) if isinstance(node, ast.Call)]
    raised = [ast.unparse(node.exc) for node in nodes(MODULES[module]) if isinstance(node, ast.Raise) and node.exc]
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    assert not forbidden & set(calls)
    assert not [one for one in raised if one.startswith("SystemExit")]


def test_imports_have_no_cycle() -> None:
    graph = {module: imports(module) & MODULES.keys() for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in MODULES if name not in PROGRAMS])
def test_a_module_imports_its_own_layer_and_those_below(module: str) -> None:
    assert layer(module) >= 0, "it has no layer: give it one in LAYERS"
    above = {name for name in imports(module) & MODULES.keys() if layer(name) < layer(module)}
    assert not above


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_program_is_run_and_not_imported(program: str) -> None:
    assert program in MODULES
    assert [module for module in MODULES if program in imports(module)] == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_has_one_door(library: str) -> None:
    doors = {module for module in MODULES if library in map(top, imports(module))}
    # A package is one door.
    assert {
        next((door for door in ONLY_IN[library] if f"{it}.".startswith(f"{door}.")), it) for it in doors
    } == ONLY_IN[library]


# What a fast answer must not load

HEAVY = {"xllamacpp", "httpx", "ollama", "huggingface_hub", "pynvml", "gguf", "PIL", "numpy", "psutil", "asyncio"}
HEAVY |= {"pydantic", "tomlkit", "filelock", "prompt_toolkit"}
FACES = {"typer", "rich", "click"}

PROBE = """
import atexit, sys
log = sys.argv.pop()
atexit.register(lambda: print(*sys.modules, file=open(log, "w")))
from llmdeploy.__main__ import main
main()
"""


def loaded(tmp_path: Path, *arguments: str, status: int = 0, **environment: str) -> tuple[str, set[str]]:
    """The output of a command line, and the modules that were loaded when it ended."""
    log = tmp_path / "modules"
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments, str(log)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    modules = set(log.read_text().split())
    assert "llmdeploy.cli.main" in modules
    return done.stdout, {top(name) for name in modules}


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    _, modules = loaded(tmp_path, "doctor", "--bogus", status=2)
    assert {"llmdeploy", "typer"} <= modules


def test_the_version_loads_nothing(tmp_path: Path) -> None:
    output, modules = loaded(tmp_path, "--version")
    assert output.startswith("llmdeploy ")
    assert modules & (HEAVY | FACES) == set()


def test_the_help_loads_the_face_only(tmp_path: Path) -> None:
    output, modules = loaded(tmp_path, "--help")
    assert "doctor" in output
    assert "typer" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "expected"), [("st", "status"), ("serve --eng", "--engine"), ("serve qwen3:", "qwen3:8b")]
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_loads_nothing(tmp_path: Path, shell: str, words: str, expected: str) -> None:
    line = ["llmdeploy", *words.split()]
    output, modules = loaded(
        tmp_path,
        _LLMDEPLOY_COMPLETE=f"complete_{shell}",
        COMP_WORDS="\n".join(line),
        COMP_CWORD=str(len(line) - 1),
        _TYPER_COMPLETE_ARGS=" ".join(line),
    )
    assert expected in output.replace("\\\\", "")
    assert modules & (HEAVY | FACES) == set()


def test_the_status_of_nothing_loads_little(tmp_path: Path) -> None:
    output, modules = loaded(tmp_path, "status", status=1)
    assert output == "nothing is served\n"
    assert modules & (HEAVY | {"rich"}) == set()


def test_the_variables_of_a_shell_load_little(tmp_path: Path) -> None:
    """It stands in the file that a shell reads at its start."""
    output, modules = loaded(tmp_path, "env", "--shell", "sh")
    assert output.startswith("export ")
    assert modules & (HEAVY | {"rich"}) == set()

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

from llmdeploy.config import ENGINE_NAMES

PACKAGE = Path(__file__).parents[1] / "llmdeploy"

# Programs of their own, which are run and never imported: they have a stdout and an exit status of their own.
PROGRAMS = {
    "llmdeploy.service.watchdog",
    "llmdeploy.engines.llamacpp.server_program",
    "llmdeploy.engines.python_environment.inspect_python",
}
FACE = {"llmdeploy.__main__", "llmdeploy.cli"}

ANYWHERE = {
    "errors",
    "text",
    "units",
    "paths",
    "background",
    "atomic_file",
    "address",
    "tls",
    "rules",
    "config_types",
    "bounded_file",
    "ownership",
}
"""The small parts that every other part may import. They import nothing but each other."""

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "cli": {
        "__init__",
        "client",
        "config",
        "doctor",
        "dotenv",
        "endpoint",
        "engines",
        "hardware",
        "images",
        "models",
        "service",
    },
    "client": {"images"},
    "config": set(),
    "doctor": {"config", "engines", "hardware", "service"},
    "dotenv": set(),
    "endpoint": {"config", "models", "service"},
    "engines": {"config", "hardware", "models", "plan"},
    "gateway": {"http1", "validation_messages"},
    "hardware": set(),
    "http1": set(),
    "image_sources": {"__init__"},
    "images": {"image_sources"},
    "models": {"__init__", "config", "validation_messages"},
    "plan": {"hardware", "models"},
    "selftest": set(),
    "service": {"config", "engines", "gateway", "hardware", "models", "plan"},
    "validation_messages": set(),
}
"""For each package and each module at the top: the other parts of llmdeploy that it may import."""

ONLY_IN: dict[str, set[str]] = {
    "pynvml": {"llmdeploy.hardware"},
    "huggingface_hub": {"llmdeploy.models.hub"},
    "hf_xet": {"llmdeploy.models.hub"},
    "ollama": {"llmdeploy.engines.ollama.connection"},
    "xllamacpp": {"llmdeploy.engines.llamacpp.server_program"},
    "vllm": set(),
    "torch": set(),
}


def name_of(file: Path) -> str:
    name = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def modules() -> dict[str, ast.Module]:
    """Return the modules of the package, read when the first test asks for them."""
    return {name_of(file): ast.parse(file.read_text(), file) for file in sorted(PACKAGE.rglob("*.py"))}


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
    for node in nodes(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            assert node.module is not None
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in named}
    return frozenset(found)


def top(name: str) -> str:
    return name.split(".")[0]


def part(module: str) -> str:
    """Return the package or the module at the top that a module belongs to.

    The settings of an engine are a part of the configuration that is kept with the engine.
    """
    if module.startswith("llmdeploy.engines.") and module.endswith(".settings"):
        return "config"
    return module.split(".")[1] if "." in module else "__init__"


def for_type_checkers(module: str) -> set[str]:
    """Return the modules of llmdeploy that a module imports, those under `if TYPE_CHECKING` included."""
    found = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in full}
    return found & modules().keys() - {module}


def is_face(module: str) -> bool:
    return module in FACE or module.startswith("llmdeploy.cli.")


def test_the_modules_are_read() -> None:
    assert {"llmdeploy", "llmdeploy.cli", "llmdeploy.cli.main", "llmdeploy.__main__", "llmdeploy.plan"} <= set(
        modules()
    )
    assert "llmdeploy.service.process" in imports("llmdeploy.service.state")
    assert "pynvml" in imports("llmdeploy.hardware"), "an import inside a function"
    assert "rich.table" not in imports("llmdeploy.cli.output"), "an import for type checkers"


def named(faults: dict[str, object]) -> str:
    """Return one line for each module with a fault."""
    return "".join(f"\n{module}: {fault}" for module, fault in faults.items() if fault)


def test_only_the_face_knows_typer_and_rich() -> None:
    faults: dict[str, object] = {}
    for module in modules():
        if not is_face(module):
            texts = [str(node.value) for node in nodes(modules()[module]) if isinstance(node, ast.Constant)]
            faults[module] = [name for name in imports(module) if is_face(name) or top(name) in {"typer", "rich"}]
            faults[f"{module}, by name"] = [text for text in texts if text.startswith("llmdeploy.cli")]
    assert not named(faults), named(faults)


def test_only_the_face_prints_and_exits() -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    faults: dict[str, object] = {}
    for module in modules():
        if not is_face(module) and module not in PROGRAMS:
            calls = [ast.unparse(node.func) for node in nodes(modules()[module]) if isinstance(node, ast.Call)]
            raised = [
                ast.unparse(node.exc) for node in nodes(modules()[module]) if isinstance(node, ast.Raise) and node.exc
            ]
            faults[module] = [*(forbidden & set(calls)), *(one for one in raised if one.startswith("SystemExit"))]
    assert not named(faults), named(faults)


def test_imports_have_no_cycle() -> None:
    graph = {module: imports(module) & modules().keys() for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            fresh = graph[waiting.pop()] - found
            found |= fresh
            waiting += fresh
        return found

    reached = {module: reachable(module) for module in graph}
    groups = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return [set(group) for group in groups if group]


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_imports_for_type_checkers_have_no_cycle() -> None:
    found = cycles({module: for_type_checkers(module) for module in modules()})
    assert not found, found


def test_a_part_imports_what_it_may() -> None:
    faults: dict[str, object] = {}
    for module in modules().keys() - PROGRAMS:
        assert part(module) in MAY_IMPORT.keys() | ANYWHERE, f"give `{part(module)}` a line in MAY_IMPORT"
        allowed = MAY_IMPORT.get(part(module), set()) | ANYWHERE | {part(module)}
        faults[module] = {name for name in imports(module) & modules().keys() if part(name) not in allowed}
    assert not named(faults), named(faults)


def test_what_a_part_may_import_it_does_import() -> None:
    """Each line of MAY_IMPORT is as short as it can be, and no part may import a part that may import it."""
    for name, allowed in MAY_IMPORT.items():
        used = {part(it) for module in modules() if part(module) == name for it in imports(module) & modules().keys()}
        assert allowed <= used, f"`{name}` does not import {allowed - used}"
    assert not cycles({name: MAY_IMPORT.get(name, set()) for name in MAY_IMPORT.keys() | ANYWHERE})


KNOW_ENGINES = (
    "llmdeploy.engines.",
    "llmdeploy.config.",
    "llmdeploy.models.catalog.reader",
    "llmdeploy.models.catalog.schema",
)
"""Engines themselves, their settings, and the catalog's file, whose keys are named like them."""
NAME_FORMATS = {"llmdeploy.models.weights", "llmdeploy.models.stores.installed"}
"""They name a format and a place `ollama`, which others know as a constant."""


def test_engines_are_named_only_where_they_are_defined() -> None:
    """Other code asks for a format: `registry.running(GGUF)`."""
    found = [
        f"{module}: {node.value}"
        for module, tree in modules().items()
        if not module.startswith(KNOW_ENGINES) and module not in NAME_FORMATS
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ENGINE_NAMES
    ]
    assert found == []


def test_a_program_is_run_and_not_imported() -> None:
    assert modules().keys() >= PROGRAMS
    faults: dict[str, object] = {module: PROGRAMS & imports(module) for module in modules()}
    assert not named(faults), named(faults)


def test_a_heavy_library_has_one_door() -> None:
    found = {library: {module for module in modules() if library in map(top, imports(module))} for library in ONLY_IN}
    # A package is one door.
    doors = {
        library: {next((door for door in ONLY_IN[library] if f"{it}.".startswith(f"{door}.")), it) for it in modules}
        for library, modules in found.items()
    }
    assert doors == ONLY_IN


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

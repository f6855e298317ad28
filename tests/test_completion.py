"""Shell completion, compared with Typer's own, and typed into the real shells that are installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from llmdeploy.cli import complete
from llmdeploy.cli.app import COMMANDS, build
from llmdeploy.cli.main import run
from llmdeploy.config import ENGINE_NAMES, keys
from llmdeploy.models.catalog import lookup

ROOT = Path(__file__).parents[1]
SCRIPTS = ["_llmdeploy", "llmdeploy.bash", "llmdeploy.fish", "llmdeploy.ps1"]
SHELLS = ["bash", "zsh", "fish", "powershell", "pwsh"]
KEYS = [key.name for key in keys()]

Entry = tuple[str, dict[str, tuple[str, str]], list[str], dict[str, "Entry"]]


def variables(shell: str, line: str) -> dict[str, str]:
    """Return the variables that the shell's script sets when Tab is pressed at the end of `line`."""
    words = line.split(" ")
    if shell == "bash":
        asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        asked = {"_TYPER_COMPLETE_ARGS": line.rstrip() if shell in {"powershell", "pwsh"} else line}
    extra = {"_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1], "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return {**asked, **extra, "_LLMDEPLOY_COMPLETE": f"complete_{shell}"}


def ask(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run llmdeploy for one completion request."""
    inherited = {name: value for name, value in os.environ.items() if "COMP" not in name}
    return subprocess.run(
        [sys.executable, "-m", "llmdeploy"],
        env={**inherited, "PYTHONWARNINGS": "error", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def offered(line: str) -> list[str]:
    """Return the completions of a line, as fish gets them."""
    return [one.split("\t")[0] for one in ask(**variables("fish", line)).stdout.splitlines()]


# The generated files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `scripts/completions.py` and return the folder with its output."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([sys.executable, ROOT / "scripts" / "completions.py", folder], check=True, timeout=60)
    return folder


@pytest.mark.parametrize("file", [*(f"completions/{name}" for name in SCRIPTS), "llmdeploy/cli/completion_table.py"])
def test_generated_file_is_up_to_date(made: Path, file: str) -> None:
    assert (ROOT / file).read_text() == (made / file).read_text(), "run `python scripts/completions.py`"


def test_only_these_files_are_generated(made: Path) -> None:
    assert sorted(file.name for file in (made / "completions").iterdir()) == sorted(SCRIPTS)
    assert sorted(file.name for file in (ROOT / "completions").iterdir()) == sorted(SCRIPTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_table_equals_the_app(name: str) -> None:
    assert list(complete.TABLE) == list(COMMANDS)
    compare(complete.TABLE[name], get_command(build([name])).commands[name])


def compare(entry: Entry, command: Any) -> None:
    _, options, arguments, subcommands = entry
    names = [name for it in command.params if it.param_type_name == "option" for name in it.opts + it.secondary_opts]
    assert set(options) == {*names, "-h", "--help"}
    assert len(arguments) == sum(it.param_type_name == "argument" for it in command.params)
    assert list(subcommands) == list(getattr(command, "commands", {}))
    for name, subcommand in subcommands.items():
        compare(subcommand, command.commands[name])


def test_every_help_is_one_line() -> None:
    """Shells read one completion per line; blanks other than a space end its name."""
    helps = [key.help for key in keys()]
    tables: list[Entry] = [("", complete.GLOBAL_OPTIONS, [], complete.TABLE)]
    while tables:
        text, options, _, subcommands = tables.pop()
        helps += [text, *(help for help, _ in options.values())]
        tables += subcommands.values()
    assert len(helps) > len(COMMANDS)
    assert [help for help in helps if not help.isprintable()] == []


# Completions


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmdeploy ", list(COMMANDS)),
        ("llmdeploy st", ["status", "stop"]),
        ("llmdeploy --vers", ["--version"]),
        ("llmdeploy --quiet st", ["status", "stop"]),
        ("llmdeploy serve ", lookup.names()),
        ("llmdeploy serve qwen3:8", ["qwen3:8b"]),
        ("llmdeploy models ", ["catalog", "show", "rm"]),
        ("llmdeploy models show ", lookup.names()),
        ("llmdeploy models show qwen3:8b self", ["selftest"]),
        ("llmdeploy serve --eng", ["--engine"]),
        ("llmdeploy serve --engine ", list(ENGINE_NAMES)),
        ("llmdeploy serve -e ", list(ENGINE_NAMES)),
        ("llmdeploy serve --engine=", [f"--engine={name}" for name in ENGINE_NAMES]),
        ("llmdeploy serve --engine=llamacpp self", ["selftest"]),
        ("llmdeploy serve --port 1 self", ["selftest"]),
        ("llmdeploy serve --port ", []),
        ("llmdeploy serve ./", []),
        ("llmdeploy serve --mmproj ", []),
        ("llmdeploy serve --mmproj=", []),
        ("llmdeploy chat --image ", []),
        ("llmdeploy chat --model self", ["selftest"]),
        ("llmdeploy chat 'an open quote --mod", []),
        ("llmdeploy env --shell ", ["bash", "zsh", "sh", "fish", "powershell"]),
        ("llmdeploy env --shell=po", ["--shell=powershell"]),
        ("llmdeploy env --dotenv ", []),
        ("llmdeploy config ", ["path", "show", "get", "set"]),
        ("llmdeploy config get ", KEYS),
        ("llmdeploy config set engines.llamacpp.s", ["engines.llamacpp.server"]),
        ("llmdeploy config set port ", ["--project", "--help", "-h"]),
        ("llmdeploy stop ", list(complete.TABLE["stop"][1])),
        ("llmdeploy bogus --vers", ["--version"]),
    ],
)
def test_completions(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


# Comparison with Typer


def typers_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, line: str) -> str:
    """Return what Typer prints for the same request."""
    with monkeypatch.context() as patch:
        for name, value in variables(shell, line).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit):
            get_command(build(line.split()[1:]))(args=[], prog_name="llmdeploy")
    return capsys.readouterr().out


def candidates_in(answer: str) -> list[str]:
    """Parse the completions in an answer, sorted by name; zsh's are wrapped in a function call."""
    return sorted(answer.strip().removeprefix("_arguments '*: :((").removesuffix("))'").splitlines())


OPTION_LINES = [
    "llmdeploy -",
    *(f"llmdeploy {name} -" for name in COMMANDS),
    *(f"llmdeploy config {name} -" for name in complete.TABLE["config"][3]),
]


@pytest.mark.parametrize("line", OPTION_LINES)
@pytest.mark.parametrize("shell", SHELLS)
def test_options_are_offered_as_typer_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, line: str
) -> None:
    expected = candidates_in(typers_answer(monkeypatch, capsys, shell, line))
    for name, value in variables(shell, line).items():
        monkeypatch.setenv(name, value)
    assert run([]) == 0
    assert candidates_in(capsys.readouterr().out) == expected
    assert "--help" in str(expected)


@pytest.mark.parametrize("line", ["llmdeploy ", "llmdeploy s", "llmdeploy config ", "llmdeploy config s"])
@pytest.mark.parametrize(
    ("shell", "separator"),
    [("bash", "\n"), ("zsh", '":"'), ("fish", "\t"), ("powershell", ":::"), ("pwsh", ":::")],
)
def test_commands_are_offered_as_typer_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, separator: str, line: str
) -> None:
    """Only the names are compared, because Typer truncates the help."""
    expected = candidates_in(typers_answer(monkeypatch, capsys, shell, line))
    found = candidates_in(ask(**variables(shell, line)).stdout)
    assert [one.split(separator)[0] for one in found] == [one.split(separator)[0] for one in expected]
    assert len(found) > 1


# The protocol of each shell


@pytest.mark.parametrize(("line", "status"), [("llmdeploy serve --eng", 0), ("llmdeploy serve ./x", 1)])
def test_fish_asks_whether_there_are_completions(line: str, status: int) -> None:
    answer = ask(**variables("fish", line) | {"_TYPER_COMPLETE_FISH_ACTION": "is-args"})
    assert (answer.returncode, answer.stdout, answer.stderr) == (status, "", "")


def test_zsh_offers_files_without_completions() -> None:
    assert ask(**variables("zsh", "llmdeploy serve --mmproj ")).stdout == "_files\n"


def test_powershell_gets_help_for_every_completion() -> None:
    assert ask(**variables("powershell", "llmdeploy serve self")).stdout == "selftest::: \n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_special_characters_in_help_work_in_zsh(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, shell: str
) -> None:
    """zsh evaluates the answer twice: in the script and in `_arguments`. bash treats these quotes alike."""
    program = shutil.which(shell) or pytest.skip(f"{shell} is not installed")
    help = """It's a "b": `touch c` $(touch d) $HOME (e) ) \\"""
    monkeypatch.setitem(complete.TABLE, "odd", (help, {}, [], {}))
    for name, value in variables("zsh", "llmdeploy od").items():
        monkeypatch.setenv(name, value)
    assert run([]) == 0
    script = """
        _arguments() { inner=${1#*"(("}; eval "candidates=( ${inner%"))"} )"; printf '%s\\n' "${candidates[@]}"; }
        eval $(printf '%s' "$ANSWER")
    """
    done = subprocess.run(
        [program, "-c", script],
        env={**os.environ, "ANSWER": capsys.readouterr().out},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    # Typer's format drops the quotes.
    assert done.stdout == "odd:Its a b\\: `touch c` $(touch d) $HOME (e) ) \\\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"_LLMDEPLOY_COMPLETE": "complete_bash"},
        {"_LLMDEPLOY_COMPLETE": "complete_zsh"},
        {"_LLMDEPLOY_COMPLETE": "complete_fish"},
        {"_LLMDEPLOY_COMPLETE": "complete_powershell"},
        {"_LLMDEPLOY_COMPLETE": "complete_tcsh", "_TYPER_COMPLETE_ARGS": "llmdeploy se"},
        {"_LLMDEPLOY_COMPLETE": "complete_"},
        variables("bash", "") | {"COMP_CWORD": "0"},
        variables("bash", "llmdeploy se") | {"COMP_CWORD": "99"},
        variables("bash", "llmdeploy se") | {"COMP_CWORD": "-9"},
        variables("bash", "llmdeploy se") | {"COMP_CWORD": "one"},
        variables("bash", "llmdeploy se") | {"COMP_CWORD": "²"},
        variables("bash", "llmdeploy se") | {"COMP_CWORD": ""},
        variables("bash", 'llmdeploy chat "open'),
        variables("bash", "llmdeploy serve : = :: :=") | {"COMP_CWORD": "3"},
        variables("bash", "llmdeploy serve \\"),
        variables("zsh", "llmdeploy bogus --bogus "),
        variables("zsh", "llmdeploy chat 'open "),
        variables("zsh", "llmdeploy serve \\"),
        variables("fish", "   "),
        variables("fish", "llmdeploy serve --engine=ollama=x --="),
        variables("powershell", "llmdeploy") | {"_TYPER_COMPLETE_WORD_TO_COMPLETE": "se"},
        variables("powershell", '"') | {"_TYPER_COMPLETE_WORD_TO_COMPLETE": ""},
    ],
    ids=str,
)
def test_a_hostile_line_is_answered(environment: dict[str, str]) -> None:
    answer = ask(**environment)
    assert answer.returncode in {0, 1}
    assert answer.stderr == ""


def test_an_unknown_shell_gets_no_script() -> None:
    answer = ask(_LLMDEPLOY_COMPLETE="source_tcsh")
    assert (answer.returncode, answer.stdout, answer.stderr) == (1, "", "Shell tcsh not supported.\n")


# The real shells


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an `llmdeploy` on PATH that records its arguments and answers completion requests; return the record."""
    program, log = tmp_path / "bin" / "llmdeploy", tmp_path / "typed"
    program.parent.mkdir()
    python = shlex.quote(sys.executable)
    program.write_text(
        f'#!/bin/sh\n[ -n "$_LLMDEPLOY_COMPLETE" ] && exec {python} -m llmdeploy "$@"\necho "$*" >> "$LOG"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("LOG", str(log))
    return log


def shell_named(name: str) -> str:
    if os.name != "posix":
        pytest.skip("needs a POSIX system")
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


BASH = f"""
source {shlex.quote(str(ROOT / "completions" / "llmdeploy.bash"))}
COMP_CWORD=$1
COMP_WORDS=("${{@:2}}")
_llmdeploy_completion llmdeploy
[ ${{#COMPREPLY[@]}} -eq 0 ] || printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ([""], 1, list(COMMANDS)),
        (["st"], 1, ["status", "stop"]),
        (["serve", "--eng"], 2, ["--engine"]),
        (["serve", "--engine", ""], 3, list(ENGINE_NAMES)),
        (["serve", "--engine", "="], 3, list(ENGINE_NAMES)),
        (["serve", "--engine", "=", "llama"], 4, ["llamacpp"]),
        (["serve", "--engine", "=", "llamacpp", ""], 5, lookup.names()),
        (["serve", "qwq"], 2, ["qwq:32b"]),
        (["serve", "qwq", ":"], 3, ["32b"]),
        (["serve", "qwen3", ":", "8"], 4, ["8b"]),
        (["serve", "qwen3:8"], 2, ["qwen3:8b"]),  # COMP_WORDBREAKS without a colon
        (["serve", "'qwen3:8"], 2, ["qwen3:8b"]),
        (["serve", "qwen3", ":", "8b", "--eng"], 5, ["--engine"]),
        (["config", "get", ""], 3, KEYS),
        (["config", "get", "p"], 3, ["port", "parallel"]),
        (["serve", "--mmproj", ""], 3, []),
        (["chat", "--image", "pho"], 3, []),
        (["", "--json"], 1, list(COMMANDS)),
        (["se", "--json"], 1, ["serve"]),
    ],
)
def test_bash_completes(typed: Path, words: list[str], position: int, expected: list[str]) -> None:
    """bash splits words at colons and equals signs too."""
    done = subprocess.run(
        [shell_named("bash"), "--norc", "-c", BASH, "bash", str(position), "llmdeploy", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stderr, sorted(done.stdout.splitlines())) == ("", sorted(expected))


LOAD = {
    "bash": f"source {shlex.quote(str(ROOT / 'completions' / 'llmdeploy.bash'))}",
    "zsh": f"fpath=({shlex.quote(str(ROOT / 'completions'))} $fpath); autoload -U compinit; compinit -u -D",
}
TYPED = {
    "serve --eng\t": "serve --engine",
    "serve qwen3:8\t": "serve qwen3:8b",
    "serve qwq:\t": "serve qwq:32b",
    'serve "qwen3:8\t': "serve qwen3:8b",
    "serve --engine=lla\t": "serve --engine=llamacpp",
    "config get engines.llamacpp.s\t": "config get engines.llamacpp.server",
    "chat --image pho\t": "chat --image photo.png",
    "sto\t": "stop",
}


@pytest.mark.parametrize(("shell", "flags"), [("bash", ["--norc", "-i"]), ("zsh", ["-f", "-i"])])
def test_tab_in_a_real_shell(typed: Path, shell: str, flags: list[str]) -> None:
    """Typed into a terminal. zsh loads its script at the first Tab, which must complete too."""
    keys = "".join(f"llmdeploy {line}\n" for line in TYPED)
    (typed.parent / "photo.png").touch()
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", shell_named(shell), *flags]
    done = subprocess.run(
        terminal,
        input=f"{LOAD[shell]}\n{keys}exit\n",
        cwd=typed.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert typed.exists(), done.stdout
    assert typed.read_text().split("\n") == [*TYPED.values(), ""], done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmdeploy ", list(COMMANDS)),
        ("llmdeploy serve qwen3:8", ["qwen3:8b"]),
        ("llmdeploy models ", ["catalog", "rm", "show"]),
        ("llmdeploy models show ", lookup.names()),
        ("llmdeploy models show qwen3:8b self", ["selftest"]),
        ("llmdeploy serve --engine=", [f"--engine={name}" for name in ENGINE_NAMES]),
        ("llmdeploy config get ", KEYS),
        ("llmdeploy chat --image pho", ["photo.png"]),
    ],
)
def test_fish_completes(typed: Path, line: str, expected: list[str]) -> None:
    fish = shell_named("fish")
    (typed.parent / "photo.png").touch()
    script = f"source {shlex.quote(str(ROOT / 'completions' / 'llmdeploy.fish'))}; complete --do-complete {line!r}"
    done = subprocess.run(
        [fish, "--no-config", "-c", script], cwd=typed.parent, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert sorted(one.split("\t")[0] for one in done.stdout.splitlines()) == sorted(expected)

"""Write the completion scripts and the table that answers them, from the Typer app as it is now.

python scripts/completions.py [FOLDER]     FOLDER: the checkout (default) or a place to compare with
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from pprint import pformat

from typer.main import get_command

from llmdeploy.cli.app import COMMANDS, build

SCRIPTS = {"bash": "llmdeploy.bash", "zsh": "_llmdeploy", "fish": "llmdeploy.fish", "powershell": "llmdeploy.ps1"}

HEAD = '''"""What can be typed, for completion. Made by `scripts/completions.py`: do not edit.

Command -> (help, options, what its arguments take, subcommands); option -> (help, what it takes).
"""

from __future__ import annotations

Options = dict[str, tuple[str, str]]
Commands = dict[str, tuple[str, Options, list[str], "Commands"]]

'''

# zsh loads the file at the first Tab: that one is answered too.
AUTOLOADED = """
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _llmdeploy_completion
fi
"""


def main(root: Path) -> None:
    for shell, name in SCRIPTS.items():
        environment = {**os.environ, "_LLMDEPLOY_COMPLETE": f"source_{shell}"}
        command = [sys.executable, "-m", "llmdeploy"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        script = done.stdout.replace("__main__.py", "llmdeploy").strip() + "\n"  # zsh: `#compdef` on the first line
        _write(root / "completions" / name, script + (AUTOLOADED if shell == "zsh" else ""))
    _write(root / "llmdeploy" / "cli" / "completion_table.py", table())


def table() -> str:
    commands = {name: _entry(get_command(build([name])).commands[name], COMMANDS[name]) for name in COMMANDS}
    options = _options(get_command(build([])))
    body = f"GLOBAL_OPTIONS: Options = {_python(options)}\n\nTABLE: Commands = {_python(commands)}\n"
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length=120", "-"]
    return subprocess.run(command, input=HEAD + body, capture_output=True, text=True, check=True).stdout


def _entry(command: object, summary: str) -> tuple[str, dict, list[str], dict]:
    arguments = [it.metavar.strip("[]") for it in command.params if it.param_type_name == "argument"]
    subcommands = {name: _entry(it, it.help) for name, it in getattr(command, "commands", {}).items()}
    return summary, _options(command), arguments, subcommands


def _options(command: object) -> dict[str, tuple[str, str]]:
    found = {}
    for option in command.params:
        if option.param_type_name == "option":
            takes = "" if option.is_flag else option.metavar or option.name.upper()
            names = sorted([*option.opts, *option.secondary_opts], reverse=True)
            found |= dict.fromkeys(names, (option.help, takes))
    return found | dict.fromkeys(["--help", "-h"], ("Show this message and exit.", ""))


def _python(content: object) -> str:
    return pformat(content, sort_dicts=False, width=110)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1])

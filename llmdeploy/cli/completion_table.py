"""What can be typed, for completion. Made by `scripts/completions.py`: do not edit.

Command -> (help, options, what its arguments take, subcommands); option -> (help, what it takes).
"""

from __future__ import annotations

Options = dict[str, tuple[str, str]]
Commands = dict[str, tuple[str, Options, list[str], "Commands"]]

GLOBAL_OPTIONS: Options = {
    "-q": ("Print results and errors only.", ""),
    "--quiet": ("Print results and errors only.", ""),
    "-v": ("Show tracebacks of errors.", ""),
    "--verbose": ("Show tracebacks of errors.", ""),
    "--version": ("Print the version and exit.", ""),
    "--install-completion": ("Install completion for the current shell.", ""),
    "--show-completion": ("Show completion for the current shell, to copy it or customize the installation.", ""),
    "--help": ("Show this message and exit.", ""),
    "-h": ("Show this message and exit.", ""),
}

TABLE: Commands = {
    "doctor": (
        "Check this machine: Python, memory, GPUs, the engines, the port.",
        {
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        [],
        {},
    ),
    "serve": (
        "Serve a model at one address.",
        {
            "-e": ("The engine to run the model on.", "ENGINE"),
            "--engine": ("The engine to run the model on.", "ENGINE"),
            "--host": ("The address to listen on; one that others can reach needs an API key.", "ADDRESS"),
            "--port": ("The port of the address.", "PORT"),
            "--context": ("Tokens one request may use, prompt and answer.", "TOKENS"),
            "--parallel": ("Requests answered at the same time.", "N"),
            "--threads": ("CPU threads (llama.cpp).", "N"),
            "--gpu-layers": ("Layers on the GPU (llama.cpp); -1: as many as fit.", "N"),
            "--mmproj": ("The vision projector of a GGUF file, where it is not beside it.", "FILE"),
            "--allow-cloud": ("Let a model of Ollama's run in its cloud: prompts leave this machine.", ""),
            "--trust-remote-code": ("Let vLLM run the Python files that come with the model.", ""),
            "--repair": ("Try a start that fails again with what the engine asks for.", ""),
            "--no-repair": ("Try a start that fails again with what the engine asks for.", ""),
            "--timeout": ("How long to wait before giving up.", "SECONDS"),
            "-d": ("Serve in the background.", ""),
            "--detach": ("Serve in the background.", ""),
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        ["MODEL"],
        {},
    ),
    "switch": (
        "Move to another engine or model, at the same address.",
        {
            "-m": ("The model, without an engine before it.", "MODEL"),
            "--model": ("The model, without an engine before it.", "MODEL"),
            "--back": ("Return to the deployment before the last switch.", ""),
            "--dry-run": ("Show what would be done; touch nothing.", ""),
            "--no-hold": ("Have requests wait where both servers do not fit at once, or refuse them.", ""),
            "--hold": ("Have requests wait where both servers do not fit at once, or refuse them.", ""),
            "--no-beside": ("Start the new server beside the old one where both fit, or after it.", ""),
            "--beside": ("Start the new server beside the old one where both fit, or after it.", ""),
            "--context": ("Tokens one request may use, prompt and answer.", "TOKENS"),
            "--parallel": ("Requests answered at the same time.", "N"),
            "--threads": ("CPU threads (llama.cpp).", "N"),
            "--gpu-layers": ("Layers on the GPU (llama.cpp); -1: as many as fit.", "N"),
            "--mmproj": ("The vision projector of a GGUF file, where it is not beside it.", "FILE"),
            "--allow-cloud": ("Let a model of Ollama's run in its cloud: prompts leave this machine.", ""),
            "--trust-remote-code": ("Let vLLM run the Python files that come with the model.", ""),
            "--repair": ("Try a start that fails again with what the engine asks for.", ""),
            "--no-repair": ("Try a start that fails again with what the engine asks for.", ""),
            "--timeout": ("How long to wait before giving up.", "SECONDS"),
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        ["ENGINE", "MODEL"],
        {},
    ),
    "status": (
        "Tell what is served, by which process, since when.",
        {
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        [],
        {},
    ),
    "stop": (
        "Stop what is served.",
        {
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        [],
        {},
    ),
    "logs": (
        "Show the log of the server.",
        {
            "-f": ("Go on as it grows, until Ctrl-C.", ""),
            "--follow": ("Go on as it grows, until Ctrl-C.", ""),
            "-n": ("How many of the last lines.", "N"),
            "--lines": ("How many of the last lines.", "N"),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        [],
        {},
    ),
    "chat": (
        "Ask the model that is served; images too.",
        {
            "-i": ("An image; may be repeated.", "FILE|URL|-"),
            "--image": ("An image; may be repeated.", "FILE|URL|-"),
            "--system": ("The system prompt.", "TEXT"),
            "--max-tokens": ("End the answer after N tokens.", "N"),
            "--temperature": ("0 answers the same every time.", "T"),
            "--seed": ("The seed of the sampler.", "N"),
            "-m": ("The model to ask.", "MODEL"),
            "--model": ("The model to ask.", "MODEL"),
            "--timeout": ("How long to wait before giving up.", "SECONDS"),
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        ["PROMPT"],
        {},
    ),
    "env": (
        "Print what an application needs as variables of your shell.",
        {
            "--shell": ("bash, zsh, sh, fish or powershell; left out, yours.", "SHELL"),
            "--dotenv": ("Write them into this file instead, such as `.env`.", "FILE"),
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        [],
        {},
    ),
    "models": (
        "List models; show what each engine would get of one.",
        {
            "--json": ("Print one JSON document on stdout.", ""),
            "--help": ("Show this message and exit.", ""),
            "-h": ("Show this message and exit.", ""),
        },
        [],
        {
            "catalog": (
                "List the models that have a name here.",
                {
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                [],
                {},
            ),
            "show": (
                "Show what each engine would get of a model, from where, how large.",
                {
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                ["MODEL..."],
                {},
            ),
        },
    ),
    "engines": (
        "List the engines; install and remove vLLM.",
        {"--help": ("Show this message and exit.", ""), "-h": ("Show this message and exit.", "")},
        [],
        {
            "list": (
                "Show each engine: whether it can be used, its version, where it is.",
                {
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                [],
                {},
            ),
            "install": (
                "Install vLLM into an environment of its own.",
                {
                    "--version": ("The version; left out, one that is tested.", "VERSION"),
                    "--cpu": ("The build for CPUs, which needs no GPU.", ""),
                    "--dry-run": ("Only tell what would be done.", ""),
                    "-y": ("Do it without asking.", ""),
                    "--yes": ("Do it without asking.", ""),
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                ["ENGINE"],
                {},
            ),
            "remove": (
                "Remove what `install` made.",
                {
                    "-y": ("Do it without asking.", ""),
                    "--yes": ("Do it without asking.", ""),
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                ["ENGINE"],
                {},
            ),
        },
    ),
    "config": (
        "Show and change the configuration.",
        {"--help": ("Show this message and exit.", ""), "-h": ("Show this message and exit.", "")},
        [],
        {
            "path": (
                "Print the path of the configuration file.",
                {
                    "--project": ("The file `./llmdeploy.toml` instead of your own.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                [],
                {},
            ),
            "show": (
                "Print every value and where it is from.",
                {
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                [],
                {},
            ),
            "get": (
                "Print one value.",
                {
                    "--json": ("Print one JSON document on stdout.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                ["KEY"],
                {},
            ),
            "set": (
                "Change one value in the file; comments stay.",
                {
                    "--project": ("The file `./llmdeploy.toml` instead of your own.", ""),
                    "--help": ("Show this message and exit.", ""),
                    "-h": ("Show this message and exit.", ""),
                },
                ["KEY", "VALUE"],
                {},
            ),
        },
    ),
}

"""The commands and places of Ollama on each operating system, as parts of hints."""

from __future__ import annotations


def hints(platform: str) -> dict[str, str]:
    """Return the commands and places for a value of `sys.platform`."""
    if platform == "darwin":
        return {
            "get": "`brew install ollama`, or https://ollama.com/download",
            "start": "`ollama serve`, or open the Ollama app",
            "stop": "quit the Ollama app",
            "restart": "quit the Ollama app and open it again",
            "install": "`brew upgrade ollama`, or https://ollama.com/download",
            "log": "`~/.ollama/logs/server.log`",
            "environment": "`launchctl setenv NAME VALUE`, then open the Ollama app again",
            "trust": "add the proxy's certificate to the system's keychain, then open the Ollama app again",
            "key": "`~/.ollama/id_ed25519.pub`",
        }
    if platform == "win32":
        return {
            "get": "`winget install Ollama.Ollama`",
            "start": "`ollama serve`, or open the Ollama app",
            "stop": "quit the Ollama app",
            "restart": "quit the Ollama app and open it again",
            "install": "`winget upgrade Ollama.Ollama`",
            "log": r"`%LOCALAPPDATA%\Ollama\server.log`",
            "environment": "`setx NAME VALUE`, then open the Ollama app again",
            "trust": "add the proxy's certificate to the system's store, then open the Ollama app again",
            "key": r"`%USERPROFILE%\.ollama\id_ed25519.pub`",
        }
    return {
        "get": "`curl -fsSL https://ollama.com/install.sh | sh`",
        "start": "`ollama serve`, or `sudo systemctl start ollama`",
        "stop": "`sudo systemctl stop ollama`",
        "restart": "`sudo systemctl restart ollama`",
        "install": "`curl -fsSL https://ollama.com/install.sh | sh`",
        "log": "`journalctl -u ollama` or `~/.ollama/logs/server.log`",
        "environment": "`sudo systemctl edit ollama`",
        "trust": "add the proxy's certificate to the system's store (`sudo update-ca-certificates`), "
        "then `sudo systemctl restart ollama`",
        "key": "`~/.ollama/id_ed25519.pub`, of the service `/usr/share/ollama/.ollama/id_ed25519.pub`",
    }

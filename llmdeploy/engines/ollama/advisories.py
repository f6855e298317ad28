"""Published vulnerabilities of Ollama with the versions in Go's vulnerability database or in their CVE records.

Those without a fixed version are not listed, CVE-2025-63389 among them: Ollama has no key of its own.
"""

from __future__ import annotations

from llmdeploy.engines.advisories import Advisory

GO = "https://pkg.go.dev/vuln/"

ADVISORIES = (
    Advisory("CVE-2024-28224", "0.1.29", GO + "GO-2024-2699", "a web page uses it, by DNS rebinding"),
    Advisory("CVE-2024-37032", "0.1.34", GO + "GO-2024-2901", "a registry writes any file"),
    Advisory("CVE-2025-44779", "0.1.34", GO + "GO-2025-3851", "a request deletes any file"),
    Advisory("CVE-2024-39720", "0.1.46", GO + "GO-2024-3245", "one request ends it"),
    Advisory("CVE-2024-45436", "0.1.47", GO + "GO-2024-3104", "an archive writes any file"),
    Advisory("CVE-2024-12886", "0.4.0", GO + "GO-2025-3548", "a registry takes all memory"),
    Advisory(
        "CVE-2025-51471",
        "0.14.3",
        "https://github.com/github/advisory-database/pull/8826",
        "a registry gets the token for another",
    ),
    Advisory("CVE-2026-7482", "0.17.1", GO + "GO-2026-5748", "a GGUF file reads its memory"),
    Advisory(
        "CVE-2026-103663",
        "0.35.0",
        "https://www.cve.org/CVERecord?id=CVE-2026-103663",
        "a registry writes any file and runs code",
        "0.34.2",
    ),
)

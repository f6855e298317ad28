"""Published vulnerabilities of llama.cpp with the builds in their CVE records (`CVEProject/cvelistV5`).

Those of its RPC server, which is not used here, are not listed, nor those without the number of a fixed build.
"""

from __future__ import annotations

from llmdeploy.engines.advisories import Advisory

GITHUB = "https://github.com/ggml-org/llama.cpp/security/advisories/"

ADVISORIES = (
    Advisory("CVE-2025-49847", "b5662", GITHUB + "GHSA-8wwf-w4qm-gpqr", "a GGUF file writes memory"),
    Advisory("CVE-2025-52566", "b5721", GITHUB + "GHSA-7rxv-5jhh-j6xx", "a text writes memory"),
    Advisory("CVE-2026-33298", "b7824", GITHUB + "GHSA-96jg-mvhq-q7q7", "a GGUF file writes memory"),
    Advisory("CVE-2026-27940", "b8146", GITHUB + "GHSA-3p4r-fq3f-q74v", "a GGUF file writes memory"),
    Advisory(
        "CVE-2026-107183",
        "b11393",
        "https://www.cve.org/CVERecord?id=CVE-2026-107183",
        "a request writes memory",
        "b8227",
    ),
)

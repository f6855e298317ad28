"""Deploy a language model on Ollama, vLLM or llama.cpp behind one stable address."""

__version__ = "0.1.0"

"""Ollama: the engine for development."""

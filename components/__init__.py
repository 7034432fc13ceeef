"""Verbs: one folder is one pipeline step is one container step."""

"""Registered voices: in the engines and as files."""

"""The HTTP side.  Imports no torch."""

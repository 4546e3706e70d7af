"""Blocks between the networks of a chain, in Amaranth: histogram, arg-max, mean, track buffer.

Needs the extra `[firmware]`: call `tools.package("amaranth")` before importing a module of it.
"""

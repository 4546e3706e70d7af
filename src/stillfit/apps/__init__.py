"""Command line and report: parse, call, render. No science, no decisions."""

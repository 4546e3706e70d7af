"""Statistics that turn a stream into evidence: `init() -> state`, `step(state, ...)`."""

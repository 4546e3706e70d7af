"""Where events come from, how labels are late, and the store of labelled events."""

"""The Level-1 trigger: events, detector conditions, vertex finders, physics metrics."""

"""From fixed-point networks to circuits and C. The only room that knows hardware tools."""

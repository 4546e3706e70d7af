"""Who asks for a change (policies), who allows it (gates), and when (windows)."""

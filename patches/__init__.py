"""Every override of an internal of vLLM or torch that has no hook: one file a seam, no logic of its own."""

"""Every override of a vLLM internal that has no official hook: one file a seam, no logic of its own."""

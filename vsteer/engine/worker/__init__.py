"""What runs inside vLLM's own processes: the plugin, the steered model, and its step."""

"""`vsteer serve`: vLLM's OpenAI server, in which the name of a model is a steering."""

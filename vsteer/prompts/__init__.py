"""A question as tokens: the chat template, and where the answers to it begin."""

"""The proofs of steering: the canary at start, and parity with the Hugging Face reference."""

"""Where steering directions come from: contrast data, extraction, files."""

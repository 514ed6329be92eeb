"""A run, or several, as one HTML page: `write_report`. It shows the answers to the files in `queries/`."""

"""A run, or several, as one HTML page: `write_report`. What it shows is asked by the files in `queries/`."""

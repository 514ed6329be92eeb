"""Statistics over items and over models: what SQL cannot work out of the rows."""

"""Statistics, over items and over models: what SQL cannot say of the rows."""

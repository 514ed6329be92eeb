"""Questions and contrast pairs: what a data file holds, how it is read, and what comes with vsteer."""
